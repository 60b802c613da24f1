"""Where a flow's time goes on this machine, against what its memory allows."""

"""Models that other programs keep on this machine, and the files that they are kept in."""

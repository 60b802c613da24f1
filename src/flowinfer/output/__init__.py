"""How anything leaves the process: without secrets and control characters, quoted for a shell."""

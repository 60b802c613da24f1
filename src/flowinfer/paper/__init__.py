"""What belongs to the paper alone: its paths, numbers and claims, and how its tables and figures are laid out."""

"""What belongs to the paper alone: its paths and its numbers."""

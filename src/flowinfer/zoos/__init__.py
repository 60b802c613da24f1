"""Named sets of models."""

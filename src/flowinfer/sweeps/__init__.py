"""Sweeps: many flows over many data sets, with every step that they share run once."""

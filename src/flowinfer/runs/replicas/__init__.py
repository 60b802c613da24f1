"""Copies of a plan, each in a process with devices of its own, that answer one run's questions together."""

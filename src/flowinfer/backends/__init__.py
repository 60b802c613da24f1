"""Backends: what loads a model and reads its next-token distributions, or only its texts."""

"""A transformers model over the flat tokens of many rows."""

"""Keys and values of many rows, and attention over them."""

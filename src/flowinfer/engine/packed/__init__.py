"""The packed engine: flat tokens of many rows, paged keys and values, whole steps as one CUDA graph."""

"""Decoding loops: what is written, token by token, on the host or on the device."""

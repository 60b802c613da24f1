"""Copies of a server's engine in processes of their own, behind one address."""

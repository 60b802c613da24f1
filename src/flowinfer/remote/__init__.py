"""Heads in other processes and on other hosts: who serves one, who asks it, and what goes between them."""

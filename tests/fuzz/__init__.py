"""Fuzzers: input of every kind, at random; nothing may come of it but an answer or a message.

They are slow tests. `FLOWINFER_FUZZ_SECONDS=1800 FLOWINFER_FUZZ_SEED=7 python -m pytest -m slow tests/fuzz` runs each
for half an hour; a failure names the seed of its round, and that seed alone makes the round again.
"""

"""Data sets and scoring: questions in, verdicts out. Generative scoring only, never log-likelihood."""

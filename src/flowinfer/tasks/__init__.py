"""Data sets and scoring: questions in, verdicts out. What is judged is what a flow wrote or chose."""

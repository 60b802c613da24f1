"""The engine: a plan and questions in, traces out. It owns loaded models and knows nothing about flows' text."""

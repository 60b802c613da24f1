"""flowinfer: wire language models in series and in parallel, and measure what it gains and costs."""

__version__ = "0.1.0"

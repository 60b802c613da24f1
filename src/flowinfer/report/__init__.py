"""Reports over many runs: tables, figures and findings, from run and sweep folders alone.

folders -> gather -> Evidence -> tables, findings, figures -> Report -> writers (HTML, Markdown, CSV, JSON, LaTeX).
Nothing here knows models or tensors; a report is made from what runs left on disk.
"""

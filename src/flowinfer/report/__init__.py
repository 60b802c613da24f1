"""Reports over many runs: tables, figures and findings, from run and sweep folders alone.

folders -> gather -> Evidence -> Cells (the long table) -> rows in layouts, bars in figures, tests of claims -> Report
-> writers (HTML, Markdown, CSV, JSON, LaTeX). A table is a layout (`paper.tables`, `tables`) and the name of its rows
(`rows`); what is the paper's own lies in `paper/` as data. Nothing here knows models or tensors.
"""

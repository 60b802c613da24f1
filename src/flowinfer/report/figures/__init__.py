"""Figures of a report, drawn by matplotlib without a display; imported only where figures are wanted."""

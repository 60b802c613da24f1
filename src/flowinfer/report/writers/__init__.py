"""What a report is written as: one module for each form."""

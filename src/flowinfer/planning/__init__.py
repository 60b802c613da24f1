"""From a checked flow to the plan of its steps."""

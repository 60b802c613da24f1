"""From the text of a flow to a checked flow."""

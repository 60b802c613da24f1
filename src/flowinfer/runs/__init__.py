"""One run: its questions, its folder, its summary."""

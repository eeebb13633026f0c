"""The run folder, and how files are written and read."""

"""Turns arguments into a checked, costed, resumable plan."""

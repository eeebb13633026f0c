"""Runs jobs: in this process, or on Ray."""

"""Hostile input for everything that reads what a stranger wrote.

A *surface* is one file in `surfaces/`: it makes hostile input and says what reads it (see `surface.py`).
`python -m tests.fuzz` tries cases of all surfaces, `python -m tests.fuzz SURFACE --seed N` one case again.
"""

"""One file for each surface (see `fuzz/surface.py`)."""

"""What holds for every test of the project."""

from __future__ import annotations

import os

# Read when torch is imported, here and in every process that a test starts. The models of the tests are tiny:
# threads gain nothing, and where other work wants the cores they wait for each other, ten times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import settings

# A slow machine is no error.
settings.register_profile("autopeft", deadline=None)
settings.load_profile("autopeft")

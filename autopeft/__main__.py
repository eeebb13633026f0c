"""`python -m autopeft`: the same as the `autopeft` command."""

from __future__ import annotations

import sys

from autopeft.cli import main

if __name__ == "__main__":
    sys.exit(main())

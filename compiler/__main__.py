"""Run ``python -m npuc``."""

import sys

from npuc.cli import main

if __name__ == "__main__":
    sys.exit(main())

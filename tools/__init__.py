"""Command-line entry points: python -m tools.NAME."""

import sys

from hfd_jax.core import startup

if sys.argv[0] == "-m":  # `python -m tools.NAME` is about to import NAME, which takes seconds
    startup.begin()

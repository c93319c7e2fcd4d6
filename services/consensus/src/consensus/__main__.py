"""Runs consensus: python -m consensus."""

import sys

from consensus.main import main

sys.exit(main())

"""Runs cost-ledger: python -m cost_ledger."""

import sys

from cost_ledger.main import main

sys.exit(main())

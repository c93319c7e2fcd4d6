"""Runs the simulator as `python -m provider_simulator`."""

import sys

from provider_simulator.main import main

sys.exit(main())

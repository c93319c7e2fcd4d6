"""Runs the service: python -m agent_runtime."""

import sys

from agent_runtime.main import main

sys.exit(main())

"""Runs tool-executor: python -m tool_executor."""

import sys

from tool_executor.main import main

sys.exit(main())

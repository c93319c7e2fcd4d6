"""Runs llm-gateway as `python -m llm_gateway`."""

import sys

from llm_gateway.main import main

sys.exit(main())

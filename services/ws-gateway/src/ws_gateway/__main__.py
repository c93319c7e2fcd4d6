"""Runs ws-gateway: python -m ws_gateway."""

import sys

from ws_gateway.main import main

sys.exit(main())

import sys

from ws_gateway.main import main

sys.exit(main())

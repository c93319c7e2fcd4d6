import sys

from llm_gateway.main import main

sys.exit(main())

import sys

from tool_executor.main import main

sys.exit(main())

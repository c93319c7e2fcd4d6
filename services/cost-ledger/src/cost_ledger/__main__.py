import sys

from cost_ledger.main import main

sys.exit(main())

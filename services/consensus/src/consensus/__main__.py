import sys

from consensus.main import main

sys.exit(main())

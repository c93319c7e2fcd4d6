import sys

from provider_simulator.main import main

sys.exit(main())

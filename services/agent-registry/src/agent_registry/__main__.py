"""Run the service: ``python -m agent_registry``."""

from agent_registry.main import main

raise SystemExit(main())

"""Generated from proto/synod/agent_registry/v1."""

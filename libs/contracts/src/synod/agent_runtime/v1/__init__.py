"""Generated from proto/synod/agent_runtime/v1."""

"""Generated from proto/synod/tool_executor/v1."""

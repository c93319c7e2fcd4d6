"""Generated from proto/synod/llm_gateway/v1."""

"""Generated from proto/synod/ws_gateway/v1."""

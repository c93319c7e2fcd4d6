"""Generated from proto/synod/eventlog/v1."""

"""Generated from proto/synod/consensus/v1."""

"""Generated from proto/synod/cost_ledger/v1."""

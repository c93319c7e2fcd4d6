"""An append-only event log on PostgreSQL with group commit, relay to JetStream and projections."""

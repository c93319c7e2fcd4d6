"""An append-only event log on PostgreSQL with group commit, relay to JetStream and projections.

`PostgresEventLog` (or its twin `MemoryEventLog`) stores; `Aggregates` decides on streams; `Relay` publishes;
`Projector` folds events into tables that can be queried and rebuilt. See README.md for a walk of ten minutes.
"""

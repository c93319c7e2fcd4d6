"""pytest plugin: real PostgreSQL and NATS for tests."""

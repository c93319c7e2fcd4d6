"""The whole of Synod on one machine: PostgreSQL and NATS from wheels, every service a process."""

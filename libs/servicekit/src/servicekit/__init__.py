"""The process around a Synod service: settings, logs, traces, metrics, health, gRPC, NATS, lifecycle."""

"""The process around a Synod service: settings, logs, traces, metrics, health, gRPC, NATS, lifecycle.

A service hands `app.run` its settings class and one `compose(host)` function. The kit brings up what the service
needs in dependency order, reports what is missing, guards every RPC, and on SIGTERM stops so that nothing is lost.
"""

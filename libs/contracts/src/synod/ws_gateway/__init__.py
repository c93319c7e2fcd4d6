"""The edge: the contract of ws-gateway."""

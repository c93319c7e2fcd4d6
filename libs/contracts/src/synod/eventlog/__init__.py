"""The log of one service: the contract of eventlog."""

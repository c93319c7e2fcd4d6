"""Tool calls: the contract of tool-executor."""

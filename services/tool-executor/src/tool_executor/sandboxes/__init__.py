"""Isolation of tool code: a probe of what this machine can do, and the levels L1 (process) and L2 (jailed fork).

Only the standard library is imported here, so that a sandbox process starts in milliseconds and its jail stays small.
"""

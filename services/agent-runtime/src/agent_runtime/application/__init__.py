"""The use cases: runs and conversations for callers, and the worker that carries runs out."""

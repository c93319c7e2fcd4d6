"""Deciding together: the contract of consensus."""

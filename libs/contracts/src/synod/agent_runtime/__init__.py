"""Runs of agents and teams: the contract of agent-runtime."""

"""Who exists and what may they do: the contract of agent-registry."""

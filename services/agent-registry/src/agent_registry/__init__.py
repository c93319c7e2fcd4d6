"""Who exists and what may they do: tenants, principals, agent definitions, agents and their health."""

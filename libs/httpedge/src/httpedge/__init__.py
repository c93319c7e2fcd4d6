"""The HTTP edge of a service: how HTTP is read, who calls, how refusals are told, and the wire formats of model APIs."""

"""Quantities as Kubernetes writes them, and as compose does."""

UNITS = {"k": 2**10, "m": 2**20, "g": 2**30}


def bytes_of(quantity: str) -> int:
    """512Mi of Kubernetes, or 512m of compose."""
    number = quantity.removesuffix("i")
    return int(number[:-1]) * UNITS[number[-1].lower()]


def cores_of(quantity: str) -> float:
    """1, or 500m."""
    return int(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity)

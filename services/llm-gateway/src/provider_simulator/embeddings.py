"""Embeddings without a model: each word hashed onto an axis, the sum scaled to length one. Pure and deterministic.

Texts that share words lie near each other; nothing else about meaning is in them, and the answer's model says
`simulated`. Feature hashing as in Weinberger et al., 2009 (arXiv:0902.2206): sign and axis come from one hash.
"""

import hashlib
import math
import re

DIMENSIONS = 256
DIMENSIONS_MAX = 4096
EMBEDDING_MODEL = "sim-embed"

_WORD = re.compile(r"\w+")


def embed(text: str, dimensions: int = DIMENSIONS) -> tuple[float, ...]:
    """A vector of length one; all zeros for a text without words."""
    axes = [0.0] * dimensions
    for word in _WORD.findall(text.lower()):
        hashed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big")
        axes[(hashed >> 1) % dimensions] += 1.0 if hashed & 1 else -1.0
    length = math.sqrt(sum(value * value for value in axes))
    return tuple(value / length for value in axes) if length else tuple(axes)

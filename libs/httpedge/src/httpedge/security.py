"""The headers that keep browsers safe, as every answer of the edge has them; names are lower-case."""

from collections.abc import Mapping
from typing import Final

SECURITY: Final[Mapping[str, str]] = {
    # Everything comes from here and nothing from elsewhere; the page works without any other network.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}

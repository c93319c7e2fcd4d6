"""Reading the headers of messages: nats-py's own way looks at every character of every name, a third of what an event costs.

A service that follows logs reads seventeen headers with each event, so this is on the hot path of all of them.
"""

from typing import Final

from nats.aio.client import Client

_WHITESPACE: Final = " \t\n\r\x0b\x0c"
"""Of bytes.strip, which knows fewer than str.strip."""


def read_headers_quickly(client: Client) -> None:
    """Have a client read headers by header_lines. The method that it replaces is not public: a test compares the two."""
    client._parse_header_lines = header_lines  # type: ignore[method-assign]


def header_lines(raw: bytes) -> dict[str, str]:
    """The headers in a block of `Name: Value` lines, as nats-py reads them. What is not plain ASCII is left to it."""
    try:
        lines = raw.decode("ascii").split("\r\n")
    except UnicodeDecodeError:
        return Client._parse_header_lines(raw)
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            headers[name] = value.strip(_WHITESPACE)
    names = "".join(headers)
    return headers if names.isprintable() and " " not in names else Client._parse_header_lines(raw)

"""Headers of messages are read as nats-py reads them, only faster."""

import nats
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from nats.aio.client import Client
from servicekit.nats_headers import header_lines, read_headers_quickly

NAMES = st.text(alphabet="aZ-_9 \t\x1c\x0cé:", max_size=6)
VALUES = st.text(alphabet="aZ:;% \t\x0b\x1f\r\né", max_size=8)
BLOCKS = st.lists(st.tuples(NAMES, st.sampled_from([":", ": ", "", " : "]), VALUES)).map(
    lambda lines: "\r\n".join("".join(line) for line in lines).encode()
)


@given(BLOCKS | st.binary(max_size=40))
@example(b"ce-id: 1\r\nsynod-actor: a: b\r\n\r\n")
@example(b"twice: 1\r\ntwice: 2\r\n\r\n")
@example(b"two words: 1\r\nplain: 2\r\n\r\n")
@example(b"name : 1\r\n: nameless\r\nno colon\r\n\r\n")
@example("name: Jürgen\r\nnäme: 1\r\n\r\n".encode())
def test_any_block_of_headers_reads_as_nats_py_reads_it(block: bytes) -> None:
    assert header_lines(block) == Client._parse_header_lines(block)


async def test_a_client_that_was_told_to_reads_what_another_published(nats_url: str) -> None:
    client = await nats.connect(nats_url)
    read_headers_quickly(client)
    subscription = await client.subscribe("headers.quick")
    await client.publish("headers.quick", b"{}", headers={"ce-type": "synod.x.Y", "synod-actor": "Jürgen"})
    message = await subscription.next_msg(10)
    await client.close()
    assert message.headers == {"ce-type": "synod.x.Y", "synod-actor": "Jürgen"}


async def test_a_client_reads_headers_by_the_method_that_is_replaced(
    nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a newer nats-py would go its own way again, and nobody would notice."""
    client = await nats.connect(nats_url)
    monkeypatch.setattr("servicekit.nats_headers.header_lines", lambda _raw: {"read": "here"})
    read_headers_quickly(client)
    subscription = await client.subscribe("headers.replaced")
    await client.publish("headers.replaced", b"{}", headers={"ce-type": "synod.x.Y"})
    message = await subscription.next_msg(10)
    await client.close()
    assert message.headers == {"read": "here"}

"""The guard on outgoing connections, with a resolver that we tell what to say."""

import pytest
from tool_executor.errors import ToolError
from tool_executor.tools.network import Network, NetworkPolicy, is_public, refusal, resolve_by_system

PUBLIC = "93.184.215.14"


def resolving(*addresses: str):
    async def resolve(host: str, port: int) -> tuple[str, ...]:
        return addresses

    return resolve


BLOCKED = [
    ("http://127.0.0.1/", None),
    ("http://2130706433/", None),
    ("http://127.1/", None),
    ("http://0x7f000001/", None),
    ("http://0.0.0.0/", None),
    ("http://localhost/", None),
    ("http://10.0.0.1/", None),
    ("http://100.64.0.1/", None),
    ("http://169.254.169.254/latest/meta-data/", None),
    ("http://[::1]/", None),
    ("http://[::ffff:127.0.0.1]/", None),
    ("http://[64:ff9b::7f00:1]/", None),
    ("http://metadata.google.internal/", ("169.254.169.254",)),
    ("http://rebinding.example/", (PUBLIC, "127.0.0.1")),
    (f"http://{PUBLIC}:22/", (PUBLIC,)),
]


@pytest.mark.parametrize(("url", "addresses"), BLOCKED, ids=[url for url, _ in BLOCKED])
async def test_refuses_to_connect_to(url: str, addresses: tuple[str, ...] | None) -> None:
    network = Network(resolve=resolve_by_system if addresses is None else resolving(*addresses))
    async with network.client() as client:
        with pytest.raises(ToolError) as caught:
            await client.get(url)
    assert caught.value.kind == "ADDRESS_REFUSED"


@pytest.mark.parametrize(
    "address",
    [
        "192.168.1.1",
        "172.16.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "198.18.0.1",
        "203.0.113.9",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "fec0::1",
        "ff02::1",
        "::",
        "2002:7f00:1::",
        "2001:0:7f00:1::",
        "64:ff9b:1::a00:1",
        "::7f00:1",
        "2001:db8::1",
        "no address",
    ],
)
def test_takes_for_private(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", [PUBLIC, "8.8.8.8", "2606:4700:4700::1111", "64:ff9b::808:808"])
def test_takes_for_public(address: str) -> None:
    assert is_public(address)


def test_refuses_a_host_that_is_not_on_the_operators_list() -> None:
    policy = NetworkPolicy(allowed_hosts=("*.example.org", "example.org"))
    assert refusal("www.example.org", 443, (PUBLIC,), policy) == ""
    assert refusal("WWW.Example.org", 443, (PUBLIC,), policy) == ""
    assert "not on the operator's list" in refusal("example.org.evil.example", 443, (PUBLIC,), policy)


def test_allows_a_private_endpoint_only_on_the_port_the_operator_named() -> None:
    policy = NetworkPolicy(private_endpoints=frozenset({("wiki.internal", 8080)}))
    assert refusal("wiki.internal", 8080, ("10.0.0.5",), policy) == ""
    assert refusal("wiki.internal", 80, ("10.0.0.5",), policy) != ""


async def test_tells_a_name_without_address_from_a_refused_one() -> None:
    async with Network(resolve=resolving()).client() as client:
        with pytest.raises(ToolError) as caught:
            await client.get("http://nowhere.example/")
    assert (caught.value.kind, caught.value.retryable) == ("HOST_NOT_FOUND", True)

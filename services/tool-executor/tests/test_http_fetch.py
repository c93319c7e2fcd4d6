"""http_fetch against a real server on loopback, which the operator's policy names as the one private endpoint."""

import asyncio
import gzip
import time
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest
import pytest_asyncio
from tool_executor.errors import ToolError
from tool_executor.tools.http_fetch import FetchArguments, FetchResult, run
from tool_executor.tools.network import USER_AGENT, Network, NetworkPolicy

Respond = Callable[[str], bytes]


def response(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@dataclass
class Site:
    port: int = 0
    pages: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.requests.append(request)
        writer.write(self.pages.get(request.split()[1], response(b"", status="404 Not Found")))
        await writer.drain()
        writer.close()

    async def fetch(self, path: str, bytes_max: int = 1000) -> FetchResult:
        policy = NetworkPolicy(private_endpoints=frozenset({("site.example", self.port)}))
        network = Network(policy, _loopback)
        return await run(FetchArguments(url=f"http://site.example:{self.port}{path}", bytes_max=bytes_max), network)


async def _loopback(host: str, port: int) -> tuple[str, ...]:
    return ("127.0.0.1",) if host == "site.example" else (host,)


@pytest_asyncio.fixture
async def site() -> AsyncIterator[Site]:
    site = Site()
    async with await asyncio.start_server(site.serve, "127.0.0.1", 0) as server:
        site.port = server.sockets[0].getsockname()[1]
        yield site


async def kind_of_failure(site: Site, path: str) -> str:
    with pytest.raises(ToolError) as caught:
        await site.fetch(path)
    return caught.value.kind


async def test_reads_a_page(site: Site) -> None:
    site.pages["/a"] = response("größer".encode("latin-1"), "Content-Type: text/plain; charset=iso-8859-1")
    page = await site.fetch("/a")
    assert (page.status, page.content_type, page.text, page.truncated) == (200, "text/plain", "größer", False)


async def test_says_who_is_asking(site: Site) -> None:
    await site.fetch("/a")
    assert f"User-Agent: {USER_AGENT}" in site.requests[0]


async def test_returns_an_error_status_as_a_fact(site: Site) -> None:
    assert (await site.fetch("/missing")).status == 404


async def test_stops_at_the_asked_size(site: Site) -> None:
    site.pages["/long"] = response(b"x" * 5000, "Content-Type: text/plain")
    page = await site.fetch("/long")
    assert (page.size_bytes, page.truncated) == (1000, True)


async def test_unpacks_what_it_asked_to_be_packed(site: Site) -> None:
    site.pages["/gz"] = response(gzip.compress(b"hello"), "Content-Type: text/plain", "Content-Encoding: gzip")
    site.pages["/zz"] = response(zlib.compress(b"hello"), "Content-Type: text/plain", "Content-Encoding: deflate")
    assert [(await site.fetch(path)).text for path in ("/gz", "/zz")] == ["hello", "hello"]


async def test_unpacks_no_more_of_a_bomb_than_was_asked_for(site: Site) -> None:
    bomb = gzip.compress(bytes(50_000_000))
    site.pages["/bomb"] = response(bomb, "Content-Type: text/plain", "Content-Encoding: gzip")
    page = await site.fetch("/bomb")
    assert (page.size_bytes, page.truncated) == (1000, True)


async def test_unpacks_members_that_follow_each_other_and_passes_over_what_is_behind_them(site: Site) -> None:
    packed = gzip.compress(b"he") + gzip.compress(b"llo") + b"padding"
    site.pages["/gz"] = response(packed, "Content-Type: text/plain", "Content-Encoding: gzip")
    assert (await site.fetch("/gz")).text == "hello"


async def test_what_is_packed_and_cut_is_no_answer(site: Site) -> None:
    cut = gzip.compress(b"hello " * 100)[:-9]
    site.pages["/cut"] = response(cut, "Content-Type: text/plain", "Content-Encoding: gzip")
    assert await kind_of_failure(site, "/cut") == "FETCH_FAILED"


@pytest.mark.parametrize(
    "charset", ["punycode", "idna", "undefined", "unicode_escape", "utf-7", "hex", "nonsense", '"\t"']
)
async def test_what_is_no_character_set_of_the_web_is_read_as_utf_8(site: Site, charset: str) -> None:
    """Punycode of this length takes Python seconds, during which nobody else is served."""
    text = "gr\u00fc\u00dfe-" + "abcdefghij" * 15_000
    site.pages["/a"] = response(text.encode(), f"Content-Type: text/plain; charset={charset}")
    begun = time.process_time()
    assert (await site.fetch("/a", 200_000)).text == text
    assert time.process_time() - begun < 1


@pytest.mark.parametrize("charset", ["utf-8", "UTF8", "latin-1", "windows-1252", "iso-8859-15", "cp1252"])
async def test_the_character_sets_of_the_web_are_read(site: Site, charset: str) -> None:
    site.pages["/a"] = response("größe".encode(charset), f"Content-Type: text/plain; charset={charset}")
    assert (await site.fetch("/a")).text == "größe"


async def test_reads_nothing_of_what_stands_beside_a_redirect(site: Site) -> None:
    bomb = gzip.compress(bytes(50_000_000))
    site.pages["/old"] = response(bomb, "Location: /new", "Content-Encoding: gzip", status="302 Found")
    site.pages["/endless"] = b"HTTP/1.1 302 Found\r\nLocation: /old\r\nContent-Length: 9999999\r\n\r\nand so on"
    site.pages["/new"] = response(b"here", "Content-Type: text/plain")
    tracemalloc.start()
    page = await site.fetch("/endless")
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (page.text, len(page.redirects)) == ("here", 2)
    assert peak_bytes < 10_000_000


async def test_follows_a_redirect_and_tells_the_way(site: Site) -> None:
    site.pages["/old"] = response(b"", "Location: /new", status="301 Moved Permanently")
    site.pages["/new"] = response(b"here", "Content-Type: text/plain")
    page = await site.fetch("/old")
    assert page.text == "here"
    assert [url.rsplit("/", 1)[1] for url in (*page.redirects, page.url)] == ["old", "new"]


@pytest.mark.parametrize(
    "target", ["http://169.254.169.254/latest/meta-data/", "http://127.0.0.1:22/", "http://[::1]/", "http://10.1.2.3/"]
)
async def test_refuses_a_redirect_to_a_private_address(site: Site, target: str) -> None:
    site.pages["/trap"] = response(b"", f"Location: {target}", status="302 Found")
    assert await kind_of_failure(site, "/trap") == "ADDRESS_REFUSED"


async def test_refuses_a_redirect_to_another_scheme(site: Site) -> None:
    site.pages["/trap"] = response(b"", "Location: file:///etc/passwd", status="302 Found")
    assert await kind_of_failure(site, "/trap") == "FETCH_FAILED"


async def test_gives_up_on_a_redirect_loop(site: Site) -> None:
    site.pages["/loop"] = response(b"", "Location: /loop", status="302 Found")
    assert await kind_of_failure(site, "/loop") == "FETCH_FAILED"
    assert len(site.requests) < 10


@pytest.mark.parametrize("content_type", ["image/png", "application/octet-stream", "application/zip"])
async def test_refuses_what_is_not_text(site: Site, content_type: str) -> None:
    site.pages["/binary"] = response(b"\x00", f"Content-Type: {content_type}")
    assert await kind_of_failure(site, "/binary") == "UNSUPPORTED_CONTENT"


async def test_refuses_an_encoding_it_did_not_ask_for(site: Site) -> None:
    site.pages["/br"] = response(b"x", "Content-Type: text/plain", "Content-Encoding: br")
    assert await kind_of_failure(site, "/br") == "UNSUPPORTED_CONTENT"


async def test_reports_a_broken_answer_as_worth_another_try(site: Site) -> None:
    site.pages["/broken"] = b"not http at all\r\n\r\n"
    with pytest.raises(ToolError) as caught:
        await site.fetch("/broken")
    assert (caught.value.kind, caught.value.retryable) == ("FETCH_FAILED", True)


@pytest.mark.parametrize("url", ["", "no-scheme", "ftp://a.example/", "file:///etc/passwd", "http://u:p@a.example/"])
async def test_refuses_an_address_that_is_not_a_plain_page(url: str) -> None:
    with pytest.raises(ToolError) as caught:
        await run(FetchArguments(url=url), Network())
    assert caught.value.kind == "INVALID_ARGUMENTS"

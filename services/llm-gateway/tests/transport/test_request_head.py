import pytest
from llm_gateway.providers.pool import Origin
from llm_gateway.providers.request_head import request_head


def line_of(url: str) -> bytes:
    return request_head("GET", url, {}).head.partition(b"\r\n")[0]


@pytest.mark.parametrize(
    ("url", "origin", "host"),
    [
        ("http://Example.org/v1", Origin(False, "example.org", 80), b"example.org"),
        ("https://example.org/v1", Origin(True, "example.org", 443), b"example.org"),
        ("https://example.org:8443/v1", Origin(True, "example.org", 8443), b"example.org:8443"),
        ("http://[::1]:80/v1", Origin(False, "::1", 80), b"[::1]"),
        ("http://[::1]:81/v1", Origin(False, "::1", 81), b"[::1]:81"),
        ("https://bücher.example/", Origin(True, "xn--bcher-kva.example", 443), b"xn--bcher-kva.example"),
    ],
)
def test_the_origin_and_the_host_are_those_of_the_address(url: str, origin: Origin, host: bytes) -> None:
    head = request_head("GET", url, {})

    assert head.origin == origin
    assert b"\r\nhost: " + host + b"\r\n" in head.head


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("http://h", b"GET / HTTP/1.1"),
        ("http://h/a/b?alt=sse", b"GET /a/b?alt=sse HTTP/1.1"),
        ("http://h/models/m:generateContent", b"GET /models/m:generateContent HTTP/1.1"),
        ("http://h/models/a b", b"GET /models/a%20b HTTP/1.1"),
        ("http://h/models/ü", b"GET /models/%C3%BC HTTP/1.1"),
        ("http://h/models/a%2Fb", b"GET /models/a%2Fb HTTP/1.1"),
        ("http://h/m HTTP/1.1\r\nX: y", b"GET /m%20HTTP/1.1X:%20y HTTP/1.1"),
        ("http://h/a#part", b"GET /a HTTP/1.1"),
    ],
)
def test_nothing_in_an_address_gets_out_of_its_line(url: str, line: bytes) -> None:
    assert line_of(url) == line


def test_what_is_posted_has_its_length_in_bytes_and_follows_its_head() -> None:
    sent = request_head("POST", "http://h/", {}).posting("ü".encode())

    assert sent.endswith(b"\r\ncontent-length: 2\r\n\r\n\xc3\xbc")


def test_headers_replace_what_is_sent_always_whatever_their_case() -> None:
    head = request_head("GET", "http://h/", {"User-Agent": "other", "X": "ü"}).head

    assert b"user-agent: other\r\n" in head
    assert head.count(b"user-agent") == 1
    assert "x: ü".encode() in head


def test_credentials_in_an_address_are_a_header() -> None:
    assert b"\r\nauthorization: Basic dXNlcjpwOnc=\r\n" in request_head("GET", "http://user:p%3Aw@h/", {}).head


@pytest.mark.parametrize("header", [{"x": "a\r\ny: b"}, {"x": "a\nb"}, {"x\r\ny": "a"}, {"x": "a\0"}])
def test_a_header_that_would_begin_another_is_refused(header: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="cannot be sent"):
        request_head("GET", "http://h/", header)

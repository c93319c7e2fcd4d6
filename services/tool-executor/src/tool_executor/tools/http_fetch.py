"""http_fetch: read one public page or document over HTTP."""

import codecs
import hashlib
import zlib
from contextlib import aclosing
from email.message import Message

import httpcore2
import httpx2
from pydantic import Field

from tool_executor.errors import ToolError
from tool_executor.sandboxes.sandbox import Limits
from tool_executor.tools.network import Network
from tool_executor.tools.tool import Arguments, Effect, NetworkTool, Result, SelfTest

BYTES_MAX = 200_000
TEXT_TYPES = (
    "application/json",
    "application/xml",
    "application/javascript",
    "application/yaml",
    "application/x-ndjson",
)
CHARSETS = frozenset(
    {"utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "ascii", "koi8-r", "koi8-u", "mac-roman", "tis-620"}
    | {"gbk", "gb2312", "gb18030", "big5", "big5hkscs", "euc_jp", "shift_jis", "cp932", "iso2022_jp", "euc_kr", "cp949"}
    | {f"iso8859-{number}" for number in range(1, 17)}
    | {f"cp125{number}" for number in range(9)}
)
"""By Python's names, those of https://encoding.spec.whatwg.org."""
REDIRECTS_MAX = 5
_GZIP = b"\x1f\x8b"
_EITHER = zlib.MAX_WBITS | 32  # gzip or zlib, told apart by the header
TEXT_SUFFIXES = ("+json", "+xml", "+yaml")


class FetchArguments(Arguments):
    url: str = Field(max_length=2048, description="Absolute http or https address of a public page.")
    bytes_max: int = Field(default=100_000, ge=1, le=BYTES_MAX, description="Stop reading after so many bytes.")


class FetchResult(Result):
    url: str = Field(description="The address that answered in the end, after redirects.")
    status: int
    content_type: str
    text: str
    size_bytes: int = Field(description="Bytes read, after decompression.")
    sha256: str = Field(description="Of the bytes read.")
    truncated: bool
    redirects: tuple[str, ...]


async def run(arguments: FetchArguments, network: Network) -> FetchResult:
    """ToolError INVALID_ARGUMENTS, ADDRESS_REFUSED, HOST_NOT_FOUND, FETCH_FAILED, UNSUPPORTED_CONTENT."""
    url = _http_url(arguments.url)
    try:
        async with network.client() as client:
            return await _followed(client, client.build_request("GET", url), arguments.bytes_max)
    except (httpx2.TimeoutException, httpcore2.TimeoutException) as error:
        raise ToolError("FETCH_FAILED", f"url: {arguments.url!r} did not answer in time", retryable=True) from error
    except (httpx2.UnsupportedProtocol, httpcore2.UnsupportedProtocol) as error:
        raise ToolError(
            "FETCH_FAILED", f"url: {arguments.url!r} leads to an address that is not http or https"
        ) from error
    except (httpx2.HTTPError, httpcore2.NetworkError, httpcore2.ProtocolError, zlib.error) as error:
        message = f"url: reading {arguments.url!r} failed ({type(error).__name__}: {error})"
        raise ToolError("FETCH_FAILED", message, retryable=True) from error


def _http_url(text: str) -> httpx2.URL:
    try:
        url = httpx2.URL(text)
    except httpx2.InvalidURL as error:
        raise ToolError("INVALID_ARGUMENTS", f"url: {text!r} is no address ({error})") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise ToolError("INVALID_ARGUMENTS", f"url: {text!r} must begin with http:// or https:// and name a host")
    if url.userinfo:
        raise ToolError("INVALID_ARGUMENTS", "url: must not carry a user name or password; fetch public pages only")
    return url


async def _followed(client: httpx2.AsyncClient, request: httpx2.Request, bytes_max: int) -> FetchResult:
    """What answers in the end. Of a redirect nothing is read but where it leads."""
    first, redirects = str(request.url), list[str]()
    while True:
        async with aclosing(await client.send(request, stream=True)) as response:
            if response.next_request is None:
                return await _read(response, tuple(redirects), bytes_max)
            redirects.append(str(response.url))
            request = response.next_request
        if len(redirects) > REDIRECTS_MAX:
            raise ToolError("FETCH_FAILED", f"url: {first!r} redirects too often; use the final address")


async def _read(response: httpx2.Response, redirects: tuple[str, ...], bytes_max: int) -> FetchResult:
    content_type, charset = _content_type(response)
    body, truncated = await _body(response, bytes_max)
    return FetchResult(
        url=str(response.url),
        status=response.status_code,
        content_type=content_type,
        text=_decoded(body, charset),
        size_bytes=len(body),
        sha256=hashlib.sha256(body).hexdigest(),
        truncated=truncated,
        redirects=redirects,
    )


def _content_type(response: httpx2.Response) -> tuple[str, str]:
    message = Message()
    message["content-type"] = response.headers.get("content-type", "text/plain")
    found = message.get_content_type()
    if not (found.startswith("text/") or found in TEXT_TYPES or found.endswith(TEXT_SUFFIXES)):
        raise ToolError("UNSUPPORTED_CONTENT", f"url: the answer is {found}; only text, JSON and XML can be read")
    return found, message.get_content_charset("utf-8")


async def _body(response: httpx2.Response, bytes_max: int) -> tuple[bytes, bool]:
    """At most `bytes_max` bytes, however far a few compressed ones would unfold; and whether there were more."""
    unpacker = _unpacker(response.headers.get("content-encoding", "identity").strip().lower())
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk if unpacker is None else unpacker.feed(chunk, bytes_max + 1 - len(body))
        if len(body) > bytes_max:
            return bytes(body[:bytes_max]), True
    if unpacker is not None:
        unpacker.end()
    return bytes(body), False


class _Unpacker:
    """Of gzip, whose members may follow each other (RFC 1952, section 2.2), and of deflate. Raises zlib.error."""

    def __init__(self) -> None:
        self._begun = False
        self._inflate = zlib.decompressobj(_EITHER)

    def feed(self, packed: bytes, bytes_max: int) -> bytes:
        """At most so many bytes; who gets them all has enough, and asks for no more."""
        unpacked = bytearray()
        while packed and len(unpacked) < bytes_max:
            if self._inflate.eof:
                if packed[:2] not in (_GZIP[:1], _GZIP):
                    break  # what stands behind the last member is passed over, as browsers do
                self._inflate = zlib.decompressobj(_EITHER)
            self._begun = True
            unpacked += self._inflate.decompress(packed, bytes_max - len(unpacked))
            packed = self._inflate.unused_data
        return bytes(unpacked)

    def end(self) -> None:
        if self._begun and not self._inflate.eof:
            raise zlib.error("the packed answer ends in its middle")


def _unpacker(encoding: str) -> _Unpacker | None:
    if encoding in ("identity", ""):
        return None
    if encoding in ("gzip", "deflate"):
        return _Unpacker()
    raise ToolError("UNSUPPORTED_CONTENT", f"url: the answer is encoded as {encoding!r}, which was not asked for")


def _decoded(body: bytes, charset: str) -> str:
    """By the character sets of the web alone: what else Python can decode may take minutes, or is not for text."""
    try:
        known = codecs.lookup(charset).name in CHARSETS
    except (LookupError, ValueError):
        known = False
    return body.decode(charset if known else "utf-8", errors="replace")


TOOL = NetworkTool(
    name="http_fetch",
    version="1.0.0",
    title="Fetch a web page",
    description=(
        "Reads one public web page or document (text, HTML, JSON, XML) over HTTP GET and returns its text, status and "
        "SHA-256. Private and local addresses are refused. A status of 400 or more is returned, not raised."
    ),
    arguments=FetchArguments,
    result=FetchResult,
    effect=Effect.IDEMPOTENT,
    limits=Limits(wall_s=30),
    hosts=("*",),
    run=run,
    self_tests=(
        SelfTest(arguments={"url": "http://127.0.0.1/"}, error="ADDRESS_REFUSED"),
        SelfTest(arguments={"url": "http://169.254.169.254/latest/meta-data/"}, error="ADDRESS_REFUSED"),
        SelfTest(arguments={"url": "ftp://example.org/"}, error="INVALID_ARGUMENTS"),
    ),
)

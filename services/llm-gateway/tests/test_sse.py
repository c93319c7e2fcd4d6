from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm_gateway.errors import MalformedResponse
from llm_gateway.providers.sse import LINE_BYTES_MAX, SseEvent, SseParser

STREAM = "event: a\ndata: één\n\n: comment\ndata: two\ndata:  lines\n\nid: 1\nretry: 5\n\ndata\n\ndata:x\n\n".encode()
EVENTS = [SseEvent(b"a", "één".encode()), SseEvent(b"", b"two\n lines"), SseEvent(b"", b""), SseEvent(b"", b"x")]


def parsed(*chunks: bytes) -> list[SseEvent]:
    parser = SseParser()
    return [event for chunk in chunks for event in parser.feed(chunk)]


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_all_three_line_ends_are_understood(line_end: bytes) -> None:
    # A lone CR at the very end could be half of a CRLF, yet it ends the line at once.
    assert parsed(STREAM.replace(b"\n", line_end)) == EVENTS


@given(cuts=st.lists(st.integers(0, 200), max_size=12), line_end=st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_the_cut_into_chunks_does_not_matter(cuts: list[int], line_end: bytes) -> None:
    stream = STREAM.replace(b"\n", line_end)
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]

    assert parsed(*(stream[start:end] for start, end in pairwise(edges))) == EVENTS


def test_an_event_that_is_not_closed_is_not_delivered() -> None:
    assert parsed(b"data: [DONE]\n") == []


def test_the_name_of_an_event_without_data_does_not_stick() -> None:
    assert parsed(b"event: ping\n\ndata: x\n\n") == [SseEvent(b"", b"x")]


def test_a_byte_order_mark_is_skipped() -> None:
    assert parsed(b"\xef\xbb", b"\xbfdata: x\n\n") == [SseEvent(b"", b"x")]


def test_group_08_a_line_of_ten_megabytes_passes_and_a_longer_one_does_not() -> None:
    longest = b"data:" + b"x" * (LINE_BYTES_MAX - len(b"data:"))
    chunks = [longest[start : start + 65536] for start in range(0, len(longest), 65536)]

    assert len(parsed(*chunks, b"\n\n")[0].data) == LINE_BYTES_MAX - len(b"data:")
    with pytest.raises(MalformedResponse, match="longer than 10485760 bytes"):
        parsed(*chunks, b"xx")


def test_many_data_lines_are_bounded_together() -> None:
    parser = SseParser(line_bytes_max=100)

    with pytest.raises(MalformedResponse):
        for _ in range(20):
            parser.feed(b"data: 0123456789\n")

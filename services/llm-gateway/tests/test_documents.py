import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm_gateway.documents import PAGES_MAX, UNPACKED_BYTES_MAX, pages_bound
from llm_gateway.testing import a_pdf


@given(st.integers(1, 500), st.booleans())
def test_the_pages_are_counted_whether_they_are_packed_or_not(pages: int, packed: bool) -> None:
    assert pages_bound(a_pdf(pages, packed=packed)) == pages


@given(st.binary(max_size=200))
def test_what_shows_no_page_counts_as_the_longest_document(data: bytes) -> None:
    assert pages_bound(data.replace(b"/", b"")) == PAGES_MAX


def test_what_cannot_be_unpacked_counts_as_the_longest_document() -> None:
    encrypted = a_pdf(1, packed=True).replace(zlib.compress(b"")[:2], b"??", 1)
    assert pages_bound(encrypted) == PAGES_MAX


def test_a_document_that_unpacks_without_end_counts_as_the_longest_one() -> None:
    bomb = zlib.compress(b"/Page " + b" " * UNPACKED_BYTES_MAX)
    assert pages_bound(b"<</Type/Page>><</Type/ObjStm>>stream\n" + bomb + b"\nendstream") == PAGES_MAX


@pytest.mark.parametrize("end", [b"", b"stream", b"stream\nendstream"])
def test_an_object_stream_that_is_not_all_there_counts_as_the_longest_document(end: bytes) -> None:
    assert pages_bound(b"<</Type/Page>><</Type/ObjStm>>" + end) == PAGES_MAX


def test_no_document_has_more_pages_than_providers_take() -> None:
    assert pages_bound(a_pdf(PAGES_MAX + 1, packed=True)) == PAGES_MAX

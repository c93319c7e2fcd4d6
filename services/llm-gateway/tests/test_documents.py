import time
import zlib
from collections.abc import Sequence

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


@st.composite
def spelled(draw: st.DrawFn, name: str) -> bytes:
    """The name with any of its characters escaped, as ISO 32000-1, 7.3.5 allows."""
    ways = [st.sampled_from((f"{char}", f"#{ord(char):02x}", f"#{ord(char):02X}")) for char in name]
    return ("/" + "".join(draw(st.tuples(*ways)))).encode()


WHITE = st.text(st.sampled_from("\0\t\n\f\r "), min_size=1, max_size=3).map(str.encode)


@given(spelled("Page"), WHITE, st.integers(1, 600))
def test_pages_are_counted_however_their_type_is_spelled(name: bytes, white: bytes, pages: int) -> None:
    assert pages_bound((b"<</Type" + white + name + b">>") * pages) == pages


@given(spelled("Kids"), spelled("Count"), WHITE, st.integers(1, 600), st.booleans())
def test_pages_are_counted_by_their_tree_if_nothing_says_that_they_are_pages(
    kids: bytes, count: bytes, white: bytes, pages: int, are_counted: bool
) -> None:
    tree = count + white + b"%d" % pages if are_counted else kids + a_list(range(pages), white)
    assert pages_bound(b"%PDF-1.4\n2 0 obj<</Type/Pages" + tree + b">>endobj") == pages


@given(spelled("ObjStm"))
def test_an_object_stream_whose_type_is_spelled_otherwise_counts_as_the_longest_document(name: bytes) -> None:
    packed = a_pdf(3, packed=True).replace(b"/ObjStm", name)
    assert pages_bound(b"/Page" + packed) == (4 if name == b"/ObjStm" else PAGES_MAX)


def test_a_page_that_is_named_several_times_counts_each_time() -> None:
    assert pages_bound(a_tree([3] * 600)) == 600


def test_nodes_that_are_named_several_times_count_for_each_way_that_leads_to_them() -> None:
    assert pages_bound(a_tree([2, 2], [3, 3], [4, 4], [5, 5])) >= 2**4
    assert pages_bound(a_tree([2, 3], [4, 5], [4, 5], [6, 7], [6, 7])) >= 2**3
    assert pages_bound(a_tree(*([number, number] for number in range(2, 12)))) == PAGES_MAX


@given(st.lists(st.integers(1, 20), min_size=1, max_size=20))
def test_a_tree_that_names_each_node_once_has_the_leaves_that_are_no_nodes_themselves(sizes: list[int]) -> None:
    numbers = iter(range(2, 1000))
    arrays = [[next(numbers) for _ in range(size)] for size in sizes]
    leaves = {number for array in arrays for number in array} - set(range(2, len(sizes) + 1))
    assert pages_bound(a_tree(*arrays, [])) == len(leaves)


def test_a_page_that_was_added_later_makes_a_short_document_no_long_one() -> None:
    first, second = range(10, 40), range(10, 41)
    assert 31 <= pages_bound(a_tree(first, second)) <= 31 + 30


@pytest.mark.parametrize(
    "hidden",
    [
        b"/Kids 7 0 R",
        b"/Kids%\n[3 0 R]",
        b"/Kids[3 0 R %\n4 0 R]",
        b"/Kids[<</Type/Page>>]",
        b"/Kids[3 0 R",
        b"/Kids[" + b"1" * 5000 + b" 0 R]",
        b"/Count 7 0 R",
        b"/Count%\n600",
        b"/Count " + b"9" * 5000,
        b"/Encrypt 7 0 R",
        b"/Encr#79pt 7 0 R",
        b"<</N 3/First 9>>stream\nx",
        b"<</N 3/First%\n9>>stream\nx",
    ],
)
def test_what_says_its_pages_by_reference_or_hides_them_counts_as_the_longest_document(hidden: bytes) -> None:
    assert pages_bound(b"<</Type/Page>>" + hidden) == PAGES_MAX


@pytest.mark.parametrize(
    "head",
    [
        b"/Filter/LZWDecode",
        b"/Filter[/ASCII85Decode/FlateDecode]",
        b"/Filter[/FlateDecode/FlateDecode]",
        b"/Filter[/FlateDecode 7 0 R]",
        b"/Filter/Fl",
        b"/Filter/FlateDecode/DecodeParms<</Predictor 12>>",
        b"/Filter/FlateDecode/F(other.pdf)",
        b"/Filter/FlateDecode/X(>>stream\n",
        b"/Filter 7 0 R/Type/FlateDecode",
        b"",
    ],
)
def test_an_object_stream_that_is_packed_unusually_counts_as_the_longest_document(head: bytes) -> None:
    packed = b"3 0 obj<</Type/ObjStm/N 1/First 4" + head + b">>stream\n" + zlib.compress(b"1 0 <</Type/Page>>")
    assert pages_bound(b"/Page" + packed + b"\nendstream") == PAGES_MAX


def test_object_streams_inside_of_one_another_count_as_the_longest_document() -> None:
    head = b"1 0 obj<</Type/ObjStm/Filter/FlateDecode>>stream\n"
    stored = zlib.compress(head + zlib.compress(b"/Page"), 0)
    assert pages_bound(b"/Page" + head + stored) == PAGES_MAX


def test_outlines_and_streams_of_other_kinds_hide_no_pages() -> None:
    outline = b"<</First 7 0 R/Last 8 0 R/Count -2>>"
    content = b"5 0 obj<</Length 5/Filter/FlateDecode>>stream\n" + zlib.compress(b"BT ET") + b"\nendstream endobj"
    assert pages_bound(a_tree([3, 4]) + outline + content) == 2


@pytest.mark.parametrize(
    "hostile",
    [b"/", b"/Pag", b"/Page", b"/Kids[", b"/Kids[]", b"/Count 1 ", b"/Count%", b"/First ", b"obj<</N", b"obj<</N 1 "],
)
def test_a_document_of_ten_megabytes_is_looked_at_in_seconds_whatever_is_in_it(hostile: bytes) -> None:
    data = hostile * (10_000_000 // len(hostile))
    began = time.process_time()
    assert pages_bound(data) == PAGES_MAX
    assert time.process_time() - began < 10


def a_tree(*kids: Sequence[int]) -> bytes:
    """Nodes of a page tree, the first of which is its root. Nothing says that they are pages."""
    nodes = (b"%d 0 obj<</Kids%s>>endobj\n" % (number, a_list(one)) for number, one in enumerate(kids, start=1))
    return b"%PDF-1.4\n" + b"".join(nodes)


def a_list(numbers: Sequence[int], white: bytes = b" ") -> bytes:
    return b"[" + white.join(b"%d%s0%sR" % (number, white, white) for number in numbers) + b"]"

from tool_executor.sandboxes.capture import Capture


def captured(kept_bytes: int, *chunks: bytes):
    capture = Capture(kept_bytes)
    for chunk in chunks:
        capture.feed(chunk)
    return capture.output()


def test_keeps_all_of_a_short_stream() -> None:
    output = captured(10, b"abc", b"def")
    assert (output.text, output.size_bytes, output.truncated) == ("abcdef", 6, False)


def test_keeps_a_stream_that_just_fits() -> None:
    assert captured(10, b"0123456789").text == "0123456789"


def test_keeps_head_and_tail_of_a_long_stream_and_tells_its_size() -> None:
    output = captured(10, b"abcdefgh", b"ijklmnop", b"qrstuvwxyz")
    assert output.text == "abcde\n[... 16 bytes omitted ...]\nvwxyz"
    assert (output.size_bytes, output.truncated) == (26, True)


def test_gives_the_same_answer_however_the_stream_is_cut() -> None:
    stream = bytes(range(97, 123)) * 4
    whole = captured(16, stream)
    for size in (1, 3, 7, 50):
        assert captured(16, *(stream[at : at + size] for at in range(0, len(stream), size))) == whole


def test_shows_bytes_that_are_no_text_as_replacement_characters() -> None:
    assert captured(10, b"a\xffb").text == "a\ufffdb"

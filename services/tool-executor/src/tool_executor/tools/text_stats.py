"""text_stats: size and shape of a text."""

import re
from collections import Counter

from pydantic import Field

from tool_executor.errors import ToolError
from tool_executor.sandboxes.sandbox import Access
from tool_executor.tools.tool import Arguments, Effect, PureTool, Result, SelfTest
from tool_executor.tools.workspace import Workspace

TEXT_LENGTH_MAX = 200_000
FILE_BYTES_MAX = 4_000_000
WORDS_PER_MINUTE = 238  # mean silent reading of English, Brysbaert 2019
WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
SENTENCE_END = re.compile(r"[.!?…]+(?=\s|$)")


class TextStatsArguments(Arguments):
    text: str | None = Field(default=None, max_length=TEXT_LENGTH_MAX, description="The text itself, or set path.")
    path: str | None = Field(default=None, description="A UTF-8 file of the workspace, instead of text.")
    top: int = Field(default=10, ge=0, le=100, description="How many of the most frequent words to list.")


class WordCount(Result):
    word: str
    count: int


class TextStatsResult(Result):
    characters: int
    bytes: int
    words: int
    unique_words: int
    sentences: int
    lines: int
    paragraphs: int
    mean_word_length: float
    reading_time_s: int
    top_words: tuple[WordCount, ...]


def run(arguments: TextStatsArguments, workspace: Workspace) -> TextStatsResult:
    """ToolError INVALID_ARGUMENTS, NOT_FOUND, TOO_LARGE, NOT_TEXT."""
    text = _text(arguments, workspace)
    words = WORD.findall(text.lower())
    return TextStatsResult(
        characters=len(text),
        bytes=len(text.encode()),
        words=len(words),
        unique_words=len(set(words)),
        sentences=_sentences(text),
        lines=len(text.splitlines()),
        paragraphs=sum(1 for part in re.split(r"\n\s*\n", text) if part.strip()),
        mean_word_length=round(sum(map(len, words)) / len(words), 2) if words else 0.0,
        reading_time_s=round(len(words) * 60 / WORDS_PER_MINUTE),
        top_words=_top(words, arguments.top),
    )


def _text(arguments: TextStatsArguments, workspace: Workspace) -> str:
    if (arguments.text is None) == (arguments.path is None):
        raise ToolError("INVALID_ARGUMENTS", "text, path: give exactly one of the two")
    if arguments.path is None:
        return arguments.text or ""
    raw = workspace.read_bytes(arguments.path)
    if len(raw) > FILE_BYTES_MAX:
        raise ToolError("TOO_LARGE", f"path: {arguments.path!r} has {len(raw)} bytes, the limit is {FILE_BYTES_MAX}")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise ToolError("NOT_TEXT", f"path: {arguments.path!r} is not UTF-8 text (byte {error.start})") from error


def _sentences(text: str) -> int:
    """A text that does not end with a mark still ends its last sentence."""
    ends = len(SENTENCE_END.findall(text))
    return ends + 1 if SENTENCE_END.split(text)[-1].strip() else ends


def _top(words: list[str], count: int) -> tuple[WordCount, ...]:
    """Most frequent first, then by alphabet, so that equal texts give equal answers."""
    ordered = sorted(Counter(words).items(), key=lambda item: (-item[1], item[0]))
    return tuple(WordCount(word=word, count=times) for word, times in ordered[:count])


TOOL = PureTool(
    name="text_stats",
    version="1.0.0",
    title="Text statistics",
    description="Counts characters, words, sentences, lines and paragraphs of a text or file; lists frequent words.",
    arguments=TextStatsArguments,
    result=TextStatsResult,
    effect=Effect.PURE,
    access=Access.READ,
    run=run,
    self_tests=(
        SelfTest(
            arguments={"text": "One fish. Two fish!\n\nRed fish", "top": 1},
            expected={
                "words": 6,
                "unique_words": 4,
                "sentences": 3,
                "lines": 3,
                "paragraphs": 2,
                "top_words": [{"word": "fish", "count": 3}],
            },
        ),
        SelfTest(
            arguments={"path": "a.txt"}, files={"a.txt": "só\n"}, expected={"characters": 3, "bytes": 4, "words": 1}
        ),
        SelfTest(arguments={"text": "a", "path": "a.txt"}, error="INVALID_ARGUMENTS"),
        SelfTest(arguments={"path": "../secret.txt"}, error="INVALID_PATH"),
    ),
)

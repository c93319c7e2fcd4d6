"""From a turn to a finished reply: the token rule, output limits, stop sequences. Pure.

Token rule: a text costs one token for every started four bytes of UTF-8. Input is the sum over all messages and tool
definitions plus three tokens for each of them; output is the text, or the names and JSON arguments of the calls.
"""

import json
from collections.abc import Iterable

from provider_simulator.conversation import (
    Answer,
    Ask,
    CallTools,
    Finish,
    JsonObject,
    Refusal,
    Reply,
    TokenUsage,
    Turn,
)
from provider_simulator.prompt_cache import UNCACHED, CacheUse

BYTES_PER_TOKEN = 4
TOKENS_PER_MESSAGE = 3
FINGERPRINT = "synod-simulator"


def compose(
    ask: Ask, turn: Turn, *, reply_id: str, created: int, cache: CacheUse = UNCACHED, reasoning: int = 0
) -> Reply:
    """Apply the request's limits to the turn and count it; `cache` and `reasoning` are shares in tokens."""
    turn = _checked_json(turn) if ask.json_wanted else turn
    turn, finish, matched_stop = _limited(turn, ask)
    input_tokens = count_input(ask.billable)
    usage = TokenUsage(
        input=input_tokens,
        output=_output_tokens(turn) + reasoning,
        cached_input=min(cache.read, input_tokens),
        reasoning=reasoning,
        written_5m=cache.written_5m,
        written_1h=cache.written_1h,
    )
    return Reply(reply_id, ask.model, created, turn, finish, usage, matched_stop)


def count_tokens(text: str) -> int:
    return -(-len(text.encode()) // BYTES_PER_TOKEN)


def count_input(billable: Iterable[str]) -> int:
    return sum(count_tokens(text) + TOKENS_PER_MESSAGE for text in billable)


def arguments_text(arguments: JsonObject) -> str:
    return json.dumps(arguments, ensure_ascii=False, separators=(",", ":"))


def _checked_json(turn: Turn) -> Turn:
    if not isinstance(turn, Answer):
        return turn
    try:
        json.loads(turn.text)
    except ValueError:
        return Refusal(f"the request wants JSON, and the scripted answer is none: {turn.text[:120]}")
    return turn


def _limited(turn: Turn, ask: Ask) -> tuple[Turn, Finish, str | None]:
    if isinstance(turn, CallTools):
        return turn, "tool_calls", None
    if isinstance(turn, Refusal):
        return turn, "refusal", None
    text, matched = _stopped(turn.text, ask.stop)
    if ask.output_tokens_max is not None and count_tokens(text) > ask.output_tokens_max:
        return Answer(_truncated(text, ask.output_tokens_max)), "length", None
    return Answer(text), "stop_sequence" if matched else "stop", matched


def _stopped(text: str, stop: Iterable[str]) -> tuple[str, str | None]:
    hits = [(text.find(sequence), sequence) for sequence in stop if sequence and sequence in text]
    if not hits:
        return text, None
    position, sequence = min(hits)
    return text[:position], sequence


def _truncated(text: str, tokens_max: int) -> str:
    return text.encode()[: tokens_max * BYTES_PER_TOKEN].decode(errors="ignore")


def _output_tokens(turn: Turn) -> int:
    if isinstance(turn, CallTools):
        return sum(count_tokens(call.name) + count_tokens(arguments_text(call.arguments)) for call in turn.calls)
    return count_tokens(turn.text)

"""How a caller allows an answer from the cache, and how it learns whether it got one. Pure.

By the header `x-synod-cache: on` or `off`, with what else the policy says after it: `on; ttl=60; tool-calls; reasoning;
similar`. Or in the body, as an SDK's `extra_body` puts it there: `{"synod_cache": {"mode": "on", "ttl_s": 60}}`. The
header wins. The answer has `x-synod-cache: hit` or `miss` when the cache was asked.
"""

from collections.abc import Mapping
from typing import Final, Literal

from synod.llm_gateway.v1 import llm_gateway_pb2 as pb

from httpedge.compatible.wire import Seconds, StrictModel
from httpedge.mistakes import wrong

HEADER: Final = "x-synod-cache"
_MODES: Final[Mapping[str, "pb.CacheMode.ValueType"]] = {"on": pb.CACHE_MODE_ON, "off": pb.CACHE_MODE_OFF}
_FLAGS: Final = ("tool-calls", "reasoning", "similar")


class CacheWish(StrictModel):
    mode: Literal["on", "off"] | None = None
    ttl_s: Seconds | None = None
    tool_calls: bool | None = None
    reasoning: bool | None = None
    similar: bool | None = None

    def policy(self) -> pb.CachePolicy:
        return pb.CachePolicy(
            mode=_MODES[self.mode or "on"],
            ttl_s=self.ttl_s or 0,
            tool_calls=bool(self.tool_calls),
            reasoning=bool(self.reasoning),
            similar=bool(self.similar),
        )


class CacheAsked(StrictModel):
    """What any request may say of the cache."""

    synod_cache: CacheWish | None = None

    def cache_policy(self) -> pb.CachePolicy | None:
        return self.synod_cache.policy() if self.synod_cache else None


def from_header(headers: Mapping[str, str]) -> pb.CachePolicy | None:
    """None without the header. Raises InvalidArgument."""
    text = headers.get(HEADER)
    if text is None:
        return None
    mode, *rest = (word.strip().lower() for word in text.split(";"))
    if mode not in _MODES:
        raise wrong(HEADER, text, "must begin with on or off")
    policy = pb.CachePolicy(mode=_MODES[mode])
    for word in rest:
        _set(policy, text, word)
    return policy


def told(cache: str) -> dict[str, str]:
    """The header that tells a caller what the cache did."""
    return {HEADER: cache} if cache else {}


def used(event: pb.StreamEvent) -> str:
    """What the first event of a stream says of the cache."""
    return event.started.cache or event.completed.cache


def _set(policy: pb.CachePolicy, text: str, word: str) -> None:
    name, _, value = word.partition("=")
    if name == "ttl" and value.isdecimal() and len(value) < 10:
        policy.ttl_s = int(value)
    elif word in _FLAGS:
        setattr(policy, word.replace("-", "_"), True)
    else:
        raise wrong(HEADER, text, f"'{word}' must be ttl=<seconds>, {', '.join(_FLAGS)}")

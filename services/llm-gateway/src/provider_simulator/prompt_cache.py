"""A prompt cache as Anthropic has it: what stands before a breakpoint is written once and read from then on. Pure.

Unlike the provider's it takes prefixes of any length, and forgets by number and not by time.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from provider_simulator.conversation import Prefix

PREFIXES_MAX = 10_000


@dataclass(frozen=True, slots=True)
class CacheUse:
    """Parts of the input, in tokens."""

    read: int = 0
    written_5m: int = 0
    written_1h: int = 0


UNCACHED = CacheUse()


@dataclass(slots=True)
class PromptCache:
    _known: OrderedDict[str, None] = field(default_factory=OrderedDict)

    def use(self, prefixes: Sequence[Prefix]) -> CacheUse:
        """Reads the longest known of a request's prefixes, in their order, and writes what goes beyond it."""
        read = max((prefix.tokens for prefix in prefixes if prefix.sha256 in self._known), default=0)
        reached, written = read, {"5m": 0, "1h": 0}
        for prefix in prefixes:
            written[prefix.ttl] += max(0, prefix.tokens - reached)
            reached = max(reached, prefix.tokens)
            self._keep(prefix.sha256)
        return CacheUse(read, written["5m"], written["1h"])

    def _keep(self, sha256: str) -> None:
        self._known[sha256] = None
        self._known.move_to_end(sha256)
        while len(self._known) > PREFIXES_MAX:
            self._known.popitem(last=False)

"""The counts that the dialects tell apart, from the disjoint lines of a usage. Pure."""

from dataclasses import dataclass

from synod.llm_gateway.v1 import llm_gateway_pb2 as pb


@dataclass(frozen=True, slots=True)
class Counts:
    """Tokens."""

    cache_read: int
    cache_write: int
    cache_write_1h: int
    reasoning: int
    audio_input: int
    audio_output: int

    @classmethod
    def of(cls, usage: pb.Usage) -> "Counts":
        cache = {"read": 0, "write": 0}
        audio = {"input": 0, "output": 0}
        reasoning = hour = 0
        for line in usage.lines:
            if line.cache in cache:
                cache[line.cache] += line.quantity
            if line.ttl == "1h":
                hour += line.quantity
            if line.reasoning:
                reasoning += line.quantity
            if line.modality == "audio" and line.direction in audio:
                audio[line.direction] += line.quantity
        return cls(cache["read"], cache["write"], hour, reasoning, audio["input"], audio["output"])

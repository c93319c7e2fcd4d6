"""The counts that the dialects tell apart, from the disjoint lines of a usage. Pure."""

from dataclasses import dataclass

from synod.llm_gateway.v1 import llm_gateway_pb2 as pb


@dataclass(frozen=True, slots=True)
class Counts:
    """Tokens."""

    cache_read: int
    cache_write: int
    reasoning: int
    audio_input: int
    audio_output: int

    @classmethod
    def of(cls, usage: pb.Usage) -> "Counts":
        lines = usage.lines
        return cls(
            cache_read=sum(line.quantity for line in lines if line.cache == "read"),
            cache_write=sum(line.quantity for line in lines if line.cache == "write"),
            reasoning=sum(line.quantity for line in lines if line.reasoning),
            audio_input=sum(one.quantity for one in lines if one.modality == "audio" and one.direction == "input"),
            audio_output=sum(one.quantity for one in lines if one.modality == "audio" and one.direction == "output"),
        )

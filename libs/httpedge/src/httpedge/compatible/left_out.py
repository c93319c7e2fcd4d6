"""What an answer is without: parameters that its model does not take, told in a header. Pure."""

import json
from collections.abc import Sequence
from typing import Final

from synod.llm_gateway.v1 import llm_gateway_pb2 as pb

HEADER: Final = "x-synod-warnings"


def told(warnings: Sequence[str]) -> dict[str, str]:
    """A JSON array of sentences, in ASCII: names in them may hold what no header can."""
    return {HEADER: json.dumps(list(warnings))} if warnings else {}


def named(event: pb.StreamEvent) -> Sequence[str]:
    """What the first event of a stream names."""
    return event.started.warnings or event.completed.warnings

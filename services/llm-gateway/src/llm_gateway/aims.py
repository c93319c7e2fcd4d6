"""What a call asks of each of its targets, worked out once and not at each of its steps. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from synod.common.values import Attribution

from llm_gateway import counting
from llm_gateway.catalogue import Target
from llm_gateway.domain import ModelRequest
from llm_gateway.limits import Need


@dataclass(frozen=True, slots=True)
class Aim:
    """`request` names the model as its provider does, `attribution` as everybody else; `need` is the most it may use."""

    target: Target
    request: ModelRequest
    attribution: Attribution
    need: Need


def aims_of(
    targets: Sequence[Target], request: ModelRequest, attribution: Attribution, output_tokens_default: int
) -> tuple[Aim, ...]:
    """One for each target, in their order. `request.model` is not used; without a limit of its own it gets the default."""
    limit = output_tokens_default if request.max_output_tokens is None else request.max_output_tokens
    rates = [counting.image_tokens_max(target.model) for target in targets]
    # Walks through the whole input, which differs between targets by what they take for an image only.
    needs = {rate: Need(counting.request_bound(request, rate), limit) for rate in set(rates)}
    return tuple(
        Aim(target, request.aimed_at(target.model, limit), attribution.of_model(target.id), needs[rate])
        for target, rate in zip(targets, rates, strict=True)
    )

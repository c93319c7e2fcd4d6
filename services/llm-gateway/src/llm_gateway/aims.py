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
    """One for each target, in their order. `request.model` is not used. Without a limit of its own it gets the default, or
    what the model can answer at most, where that is known to be less.
    """
    rates = [counting.image_tokens_max(target.model) for target in targets]
    # Walks through the whole input, which differs between targets by what they take for an image only.
    bounds = {rate: counting.request_bound(request, rate) for rate in set(rates)}
    return tuple(
        _aim(target, request, attribution, bounds[rate], output_tokens_default)
        for target, rate in zip(targets, rates, strict=True)
    )


def _aim(target: Target, request: ModelRequest, attribution: Attribution, input_tokens: int, default: int) -> Aim:
    limit = request.max_output_tokens
    if limit is None:
        limit = min(default, target.output_tokens_max or default)
    need = Need(input_tokens, limit)
    return Aim(target, request.aimed_at(target.model, limit), attribution.of_model(target.id), need)

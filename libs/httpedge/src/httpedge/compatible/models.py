"""GET /v1/models in both forms; which one is told by the header `anthropic-version`. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from servicekit.errors import NotFound
from synod.llm_gateway.v1 import llm_gateway_pb2 as pb

from httpedge.mistakes import cut

# The catalogue knows no dates of release; a fixed one keeps the answers equal.
_SINCE: Final = 1_767_225_600
_SINCE_TEXT: Final = "2026-01-01T00:00:00Z"

Shape = Mapping[str, object]


def callable_models(models: Iterable[pb.Model]) -> list[tuple[str, pb.Model]]:
    """Each name under which a model can be called now, with the model."""
    return [(name, model) for model in models if model.available for name in (model.id, *model.aliases)]


def listed(models: Iterable[pb.Model], *, anthropic: bool) -> Shape:
    data = [_shape(name, model, anthropic=anthropic) for name, model in callable_models(models)]
    if not anthropic:
        return {"object": "list", "data": data}
    ids: Sequence[object] = [one["id"] for one in data] or [None]
    return {"data": data, "has_more": False, "first_id": ids[0], "last_id": ids[-1]}


def one(name: str, models: Iterable[pb.Model], *, anthropic: bool) -> Shape:
    """Raises NotFound."""
    for found, model in callable_models(models):
        if found == name:
            return _shape(found, model, anthropic=anthropic)
    raise NotFound("model", cut(name), remedy="GET /v1/models has all names", reason="UNKNOWN_MODEL")


def _shape(name: str, model: pb.Model, *, anthropic: bool) -> Shape:
    if not anthropic:
        return {"id": name, "object": "model", "created": _SINCE, "owned_by": model.provider}
    return {
        "id": name,
        "type": "model",
        "display_name": name,
        "created_at": _SINCE_TEXT,
        "lifecycle": "active",
        "max_input_tokens": model.context_tokens or None,
    }

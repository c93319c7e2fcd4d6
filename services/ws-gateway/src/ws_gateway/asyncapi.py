"""The AsyncAPI 3 document of the WebSocket protocol, generated from the messages' classes."""

from typing import Final

from pydantic import JsonValue
from pydantic.json_schema import models_json_schema

from ws_gateway.hub.protocol import INCOMING, OUTGOING, Incoming, Outgoing

Json = dict[str, JsonValue]
Messages = tuple[type[Incoming] | type[Outgoing], ...]
_REF: Final = "#/components/schemas/{model}"
_CHANNEL: Final = "#/channels/edge"


def document(version: str) -> Json:
    """What may travel on /ws, in both directions."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Synod WebSocket protocol v1",
            "version": version,
            "description": "One JSON object in a text frame. Every frame has type and id; answers name the frame in ref.",
        },
        "channels": {"edge": {"address": "/ws", "messages": _messages()}},
        "operations": {
            "receive": {"action": "receive", "channel": {"$ref": _CHANNEL}, "messages": _names(INCOMING)},
            "send": {"action": "send", "channel": {"$ref": _CHANNEL}, "messages": _names(OUTGOING)},
        },
        "components": {"schemas": schemas()},
    }


def schemas() -> Json:
    """JSON Schema of every message and of what they are made of; read as validation for what clients send."""
    _, incoming = models_json_schema([(model, "validation") for model in INCOMING], ref_template=_REF)
    _, outgoing = models_json_schema([(model, "serialization") for model in OUTGOING], ref_template=_REF)
    return {**incoming["$defs"], **outgoing["$defs"]}


def name_of(model: type[Incoming] | type[Outgoing]) -> str:
    """The word in the field type."""
    return str(model.model_fields["type"].annotation.__args__[0])  # type: ignore[union-attr]


def _messages() -> Json:
    every: Messages = (*INCOMING, *OUTGOING)
    return {
        _key(model): {
            "name": name_of(model),
            "summary": " ".join((model.__doc__ or "").split()),
            "payload": {"$ref": _REF.format(model=model.__name__)},
        }
        for model in every
    }


def _names(models: Messages) -> list[JsonValue]:
    return [{"$ref": f"{_CHANNEL}/messages/{_key(model)}"} for model in models]


def _key(model: type[Incoming] | type[Outgoing]) -> str:
    return model.__name__

"""Writes what is derived from the event models: JSON Schemas, golden files and the AsyncAPI document.

``python libs/contracts/generate.py`` writes; ``--check`` only compares and exits with 1 when something is out of date.
A published schema may only grow by optional fields. Anything else is refused: raise VERSION, write an upcaster.
"""

import argparse
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from synod.common import subjects
from synod.common.event import Event

HERE = Path(__file__).parent
SCHEMAS = HERE / "schemas"
GOLDEN = HERE / "tests" / "golden"
ASYNCAPI = HERE / "asyncapi.json"
SERVICES = (
    "agent-registry",
    "agent-runtime",
    "llm-gateway",
    "tool-executor",
    "cost-ledger",
    "consensus",
    "ws-gateway",
)

Json = dict[str, Any]


class IncompatibleChange(Exception):
    """A published schema was changed in a way that breaks its readers."""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    options = parser.parse_args(arguments)
    try:
        stale = [path for path, text in documents() if _differs(path, text)]
        if not options.check:
            for path, text in documents():
                _write(path, text)
    except IncompatibleChange as error:
        print(error, file=sys.stderr)
        return 1
    for path in stale:
        print(f"{'out of date' if options.check else 'wrote'}: {path.relative_to(HERE)}")
    return 1 if options.check and stale else 0


def documents() -> list[tuple[Path, str]]:
    """Every derived file with the text it should have."""
    found = [(ASYNCAPI, _text(asyncapi()))]
    for service in SERVICES:
        for event in events_module(service).EVENTS:
            schema = event.model_json_schema()
            path = SCHEMAS / service / f"{event.type_name()}.v{event.VERSION}.json"
            _refuse_breaking(path, schema)
            found.append((path, _text(schema)))
            golden = GOLDEN / service / f"{event.type_name()}.v{event.VERSION}.json"
            if not golden.exists():
                found.append((golden, _text(sample(schema, schema))))
    return found


def events_module(service: str) -> ModuleType:
    return importlib.import_module(f"synod.{service.replace('-', '_')}.events")


def asyncapi() -> Json:
    """What a subscriber needs: a channel for each service, a message for each event with its schema and subject."""
    channels: Json = {}
    operations: Json = {}
    for service in SERVICES:
        events: tuple[type[Event], ...] = events_module(service).EVENTS
        channels[service] = _channel(service, events)
        operations[f"receive-{service}"] = {"action": "receive", "channel": {"$ref": f"#/channels/{service}"}}
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Synod events",
            "version": "1.0.0",
            "description": "Every state change, in order; stream sequence equals position. CloudEvents 1.0 in binary "
            "mode, W3C trace context in traceparent.",
        },
        "defaultContentType": "application/json",
        "servers": {"nats": {"host": "127.0.0.1:7142", "protocol": "nats"}},
        "channels": channels,
        "operations": operations,
        "components": {"messageTraits": {"cloudevent": {"headers": _HEADERS}}},
    }


def _channel(service: str, events: tuple[type[Event], ...]) -> Json:
    return {
        "address": subjects.event_subject("{tenant}", service, "{aggregate}", "{id}", "{type}"),
        "description": f"JetStream stream {subjects.event_stream(service)}",
        "parameters": {name: {"description": text} for name, text in _PARAMETERS.items()},
        "messages": {event.type_name(): _message(event) for event in events},
    }


def _message(event: type[Event]) -> Json:
    return {
        "name": event.type_name(),
        "summary": " ".join((event.__doc__ or "").split()),
        "contentType": "application/json",
        "traits": [{"$ref": "#/components/messageTraits/cloudevent"}],
        "tags": [{"name": event.AGGREGATE}],
        "payload": event.model_json_schema(),
    }


_PARAMETERS = {
    "tenant": "Tenant that the event belongs to",
    "aggregate": "Kind of stream, for example run",
    "id": "Stream within its kind",
    "type": "Event type, for example RunStarted",
}

_HEADERS: Json = {
    "type": "object",
    "required": ["ce-id", "ce-source", "ce-type", "ce-specversion", "ce-time", "ce-subject"],
    "properties": {
        "ce-id": {"type": "string", "format": "uuid", "description": "Never reused"},
        "ce-source": {"type": "string", "description": "/synod/<service>"},
        "ce-type": {"type": "string", "description": "synod.<service>.<Type>"},
        "ce-specversion": {"const": "1.0"},
        "ce-time": {"type": "string", "format": "date-time"},
        "ce-subject": {"type": "string", "description": "<aggregate>/<id>"},
        "ce-datacontenttype": {"const": "application/json"},
        "traceparent": {"type": "string", "description": "W3C trace context"},
        "synod-tenant": {"type": "string"},
        "synod-version": {"type": "string", "description": "Version of the stream after this event"},
        "synod-type-version": {"type": "string"},
        "synod-correlation": {"type": "string", "description": "Run"},
        "synod-causation": {"type": "string", "description": "Id of the event that caused this one"},
        "synod-actor": {"type": "string", "description": "Principal"},
        "synod-hash": {"type": "string", "description": "SHA-256 of the log up to and including this event"},
    },
}


def breaking_changes(old: Json, new: Json) -> list[str]:
    """Why a reader or a stored event of ``old`` would not survive ``new``; empty when compatible."""
    return [*_object_changes("", old, new), *_definition_changes(old, new)]


def _definition_changes(old: Json, new: Json) -> list[str]:
    found: list[str] = []
    for name, schema in old.get("$defs", {}).items():
        if name in new.get("$defs", {}):
            found += _object_changes(f"{name}.", schema, new["$defs"][name])
    return found


def _object_changes(prefix: str, old: Json, new: Json) -> list[str]:
    before, after = old.get("properties", {}), new.get("properties", {})
    removed = [f"field {prefix}{name} was removed" for name in before if name not in after]
    required = set(new.get("required", ())) - set(old.get("required", ()))
    demanded = [f"field {prefix}{name} became required" for name in sorted(required)]
    changed = [
        f"field {prefix}{name} changed its type"
        for name in before
        if name in after and not _accepts(_shape(before[name]), _shape(after[name]))
    ]
    return removed + demanded + changed


def _shape(schema: Json) -> Json:
    return {key: value for key, value in schema.items() if key not in {"title", "description", "default", "examples"}}


def _accepts(old: Json, new: Json) -> bool:
    """Equal, or an enumeration that only grew."""
    if old == new:
        return True
    grown = {**old, "enum": new.get("enum")} == new
    return grown and set(old.get("enum", ())) <= set(new.get("enum", ()))


def _refuse_breaking(path: Path, schema: Json) -> None:
    if not path.exists():
        return
    problems = breaking_changes(json.loads(path.read_text()), schema)
    if problems:
        raise IncompatibleChange(
            f"{path.relative_to(HERE)}: {'; '.join(problems)}. "
            "Published events never change: raise VERSION and add an upcaster, or give a new field a default."
        )


def sample(schema: Json, root: Json) -> Any:
    """A value that the schema accepts, the same every time; the first golden file of an event is made of it."""
    if "$ref" in schema:
        return sample(root["$defs"][schema["$ref"].rsplit("/", 1)[1]], root)
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return sample(schema[key][0], root)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    return _SAMPLES[schema["type"]](schema, root)


def _sample_array(schema: Json, root: Json) -> Any:
    if "prefixItems" in schema:
        return [sample(item, root) for item in schema["prefixItems"]]
    return [sample(schema["items"], root)]


def _sample_string(schema: Json, root: Json) -> Any:
    return {"date-time": "2026-11-21T12:00:00Z", "date": "2026-11-21", "base64": "AAEC", "binary": "AAEC"}.get(
        schema.get("format", ""), "text"
    )


_SAMPLES = {
    "object": lambda schema, root: {name: sample(part, root) for name, part in schema.get("properties", {}).items()},
    "array": _sample_array,
    "string": _sample_string,
    "integer": lambda schema, root: 7,
    "number": lambda schema, root: 0.5,
    "boolean": lambda schema, root: True,
    "null": lambda schema, root: None,
}


def _text(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, sort_keys=False) + "\n"


def _differs(path: Path, text: str) -> bool:
    return not path.exists() or path.read_text() != text


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

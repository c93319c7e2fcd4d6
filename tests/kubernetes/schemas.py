"""Whether a manifest is one that the Kubernetes API knows: by the models of lightkube, which are made from its OpenAPI."""

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import msgspec
from jsonschema import Draft202012Validator

from .kustomize import Manifest

SCALED_OBJECT = Draft202012Validator(
    {
        "type": "object",
        "additionalProperties": False,
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "properties": {
            "apiVersion": {"const": "keda.sh/v1alpha1"},
            "kind": {"const": "ScaledObject"},
            "metadata": {"type": "object", "required": ["name", "namespace"]},
            "spec": {
                "type": "object",
                "additionalProperties": False,
                "required": ["scaleTargetRef", "triggers"],
                "properties": {
                    "scaleTargetRef": {"type": "object", "required": ["name"], "maxProperties": 1},
                    "pollingInterval": {"type": "integer", "minimum": 1},
                    "minReplicaCount": {"type": "integer", "minimum": 0},
                    "maxReplicaCount": {"type": "integer", "minimum": 1},
                    "advanced": {
                        "type": "object",
                        "additionalProperties": False,
                        "properties": {"horizontalPodAutoscalerConfig": {"type": "object", "required": ["behavior"]}},
                    },
                    "triggers": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/jetstream"}},
                },
            },
        },
        "$defs": {
            "jetstream": {
                "type": "object",
                "additionalProperties": False,
                "required": ["type", "metadata"],
                "properties": {
                    "type": {"const": "nats-jetstream"},
                    "metadata": {
                        "type": "object",
                        "additionalProperties": {"type": "string"},  # also numbers: KEDA parses them itself
                        "required": ["natsServerMonitoringEndpoint", "account", "stream", "consumer", "lagThreshold"],
                        "propertyNames": {
                            "enum": [
                                "natsServerMonitoringEndpoint",
                                "account",
                                "stream",
                                "consumer",
                                "lagThreshold",
                                "activationLagThreshold",
                                "useHttps",
                            ]
                        },
                    },
                },
            }
        },
    }
)
"""The part of KEDA's ScaledObject that is used here, after its documentation (keda.sh/docs/2.21)."""


def problems(manifest: Manifest) -> list[str]:
    """What is wrong with a manifest: fields that are unknown, missing, or of another type."""
    if manifest["kind"] == "ScaledObject":
        return [error.message for error in SCALED_OBJECT.iter_errors(manifest)]
    group, _, version = manifest["apiVersion"].rpartition("/")
    module = import_module(f"lightkube.models.{(group.partition('.')[0] or 'core')}_{version}")
    try:
        known = msgspec.to_builtins(msgspec.convert(manifest, getattr(module, manifest["kind"])))
    except msgspec.ValidationError as error:
        return [str(error)]
    return [f"{path} is unknown" for path in _lost(manifest, known)]


def _lost(given: Any, known: Any, path: str = "$") -> Iterator[str]:
    """Where something was given that the model did not take."""
    if isinstance(given, dict):
        for key, value in given.items():
            if key in known:
                yield from _lost(value, known[key], f"{path}.{key}")
            else:
                yield f"{path}.{key}"
    elif isinstance(given, list):
        for number, (value, taken) in enumerate(zip(given, known, strict=True)):
            yield from _lost(value, taken, f"{path}[{number}]")

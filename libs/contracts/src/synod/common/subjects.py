"""NATS subjects and stream names. A tenant is a prefix, so one permission line isolates it."""

ROOT = "synod"
SHARED_TENANT = "system"
"""The tenant of what belongs to every tenant, such as the catalogue of tools."""


def event_subject(tenant: str, service: str, aggregate: str, stream_id: str, event_type: str) -> str:
    return f"{ROOT}.{tenant}.evt.{service}.{aggregate}.{stream_id}.{event_type}"


def all_events(service: str, tenant: str = "*") -> str:
    """The subject filter of every event of a service."""
    return f"{ROOT}.{tenant}.evt.{service}.>"


def command_subject(tenant: str, service: str, verb: str) -> str:
    return f"{ROOT}.{tenant}.cmd.{service}.{verb}"


def token_subject(tenant: str, run_id: str) -> str:
    """Where the tokens of a run go while they are produced: numbered, not stored."""
    return f"{ROOT}.{tenant}.tok.{run_id}"


def dead_letter_subject(tenant: str, service: str) -> str:
    return f"{ROOT}.{tenant}.dlq.{service}"


def heartbeat_subject(service: str) -> str:
    return f"{ROOT}.sys.{service}.hb"


def checkpoint_subject(service: str) -> str:
    """Where the signed checkpoints of a service's log are published."""
    return f"{ROOT}.sys.{service}.checkpoint"


def past_subject(service: str) -> str:
    """Where a service answers with events of its log that its stream no longer holds."""
    return f"{ROOT}.sys.{service}.past"


def event_stream(service: str) -> str:
    return f"EVT_{_upper(service)}"


def command_stream(service: str) -> str:
    return f"CMD_{_upper(service)}"


def dead_letter_stream(service: str) -> str:
    return f"DLQ_{_upper(service)}"


def _upper(service: str) -> str:
    return service.replace("-", "_").upper()

"""The JetStream streams and consumers of Synod as data.

Each is complete: a field that is not named here is off on the server too, so that a stream that also republishes, mirrors
or takes rollups is seen to differ. `config` is the form of JetStream's own API, durations in nanoseconds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from synod.common.subjects import (
    all_events,
    checkpoint_subject,
    command_stream,
    command_subject,
    dead_letter_stream,
    dead_letter_subject,
    event_stream,
)

Json = str | int | bool | None | Sequence["Json"] | Mapping[str, "Json"]

DAY_S = 24 * 3600
GIB = 1024**3
_SECOND_NS = 1_000_000_000
AGENTS = "agents"
"""Stands where a service stands in the subjects of tasks for agents outside."""
COMMAND_BYTES_MAX = 1024 * 1024
DEAD_LETTERS_MAX = 100_000
CHECKPOINT_STREAM = "CHECKPOINTS"
ANSWER_STREAM = "ANS_AGENTS"
EVENTS_KEPT = 100_000
"""Messages that an event stream holds at most. NATS keeps every subject of a stream in memory, some 0.6 KB for each, and an
event names its stream in its subject: without end, ten model calls a second fill a server of 512 MB in some hours. Readers
get what is older from the log."""
PAST_EVENTS_MAX = 500
"""Events in one answer of a service that is asked for what its stream no longer holds."""


@dataclass(frozen=True, slots=True)
class Stream:
    """One stream, kept on disk."""

    name: str
    description: str
    subjects: tuple[str, ...]
    retention: Literal["limits", "workqueue"] = "limits"
    discard: Literal["old", "new"] = "old"
    """What is refused or dropped at a limit: `new` loses nothing that was accepted."""
    max_age_s: float = 0
    max_msgs: int = -1
    max_bytes: int = -1
    max_msg_size: int = -1
    replicas: int = 1
    is_append_only: bool = False
    """No message can be deleted, by nobody; but the whole stream by an administrator."""
    allow_direct: bool = False
    allow_atomic: bool = False

    def config(self) -> Mapping[str, Json]:
        return {
            "name": self.name,
            "description": self.description,
            "subjects": list(self.subjects),
            "retention": self.retention,
            "discard": self.discard,
            "storage": "file",
            "compression": "none",
            "num_replicas": self.replicas,
            "max_age": round(self.max_age_s * _SECOND_NS),
            "max_msgs": self.max_msgs,
            "max_msgs_per_subject": -1,
            "max_bytes": self.max_bytes,
            "max_msg_size": self.max_msg_size,
            "max_consumers": -1,
            "duplicate_window": 120 * _SECOND_NS,
            "deny_delete": self.is_append_only,
            "deny_purge": self.is_append_only,
            "allow_direct": self.allow_direct,
            "allow_atomic": self.allow_atomic,
        }


@dataclass(frozen=True, slots=True)
class CommandConsumer:
    """The durable consumer that all replicas of a service share for one kind of command."""

    service: str
    verb: str
    ack_wait_s: float = 30.0

    @property
    def name(self) -> str:
        return f"{self.service}-{self.verb}".replace(".", "-")

    def config(self) -> Mapping[str, Json]:
        return {
            "durable_name": self.name,
            "name": self.name,
            "filter_subject": command_subject("*", self.service, self.verb),
            "deliver_policy": "all",
            "replay_policy": "instant",
            "ack_policy": "explicit",
            "ack_wait": round(self.ack_wait_s * _SECOND_NS),
            # The server would drop a command whose worker died in its last delivery; the service counts, and buries it.
            "max_deliver": -1,
            "max_ack_pending": 1000,
            "max_waiting": 512,
            "num_replicas": 0,
        }


def events_of(service: str, *, replicas: int = 1, max_age_s: float = 30 * DAY_S, max_msgs: int = EVENTS_KEPT) -> Stream:
    """The copy of a service's log. The log keeps everything; the stream serves those who follow."""
    return Stream(
        event_stream(service),
        f"Every event of {service}; sequence equals position in its log.",
        (all_events(service),),
        max_age_s=max_age_s,
        max_msgs=max_msgs,
        replicas=replicas,
        is_append_only=True,
        allow_direct=True,
        allow_atomic=True,
    )


def commands_of(service: str, *, max_msg_size: int = COMMAND_BYTES_MAX) -> Stream:
    """The work queue of a service."""
    subjects = (command_subject("*", service, ">"),)
    name = command_stream(service)
    return Stream(name, f"Commands for {service}.", subjects, retention="workqueue", max_msg_size=max_msg_size)


def dead_letters_of(service: str, *, max_msgs: int = DEAD_LETTERS_MAX) -> Stream:
    """What a service gave up. At the limit new letters are refused, and their commands keep being retried."""
    subjects = (dead_letter_subject("*", service),)
    description = f"Commands that {service} gave up."
    return Stream(dead_letter_stream(service), description, subjects, max_msgs=max_msgs, discard="new")


CHECKPOINTS = Stream(
    CHECKPOINT_STREAM,
    "The signed checkpoints of every log, for as long as there is room.",
    (checkpoint_subject("*"),),
    max_bytes=GIB,
    is_append_only=True,
    allow_direct=True,
)
AGENT_TASKS = Stream(
    command_stream(AGENTS),
    "Tasks for agents outside.",
    (command_subject("*", AGENTS, "*"),),
    retention="workqueue",
    # When it is full a new task is refused; none that was accepted is dropped.
    discard="new",
    max_age_s=7 * DAY_S,
    max_bytes=GIB,
)
AGENT_ANSWERS = Stream(
    ANSWER_STREAM,
    "The first answer to each task of an agent outside.",
    (f"synod.*.ans.{AGENTS}.*",),
    max_age_s=DAY_S,
    max_bytes=GIB,
    allow_direct=True,
)

"""What NATS holds and who may do what there, derived from the one table of services (layout.SERVICES). Pure.

All streams are in one account, SYNOD, in which only the administrator has a user. Every service and every kind of client is
in an account of its own, and reaches of SYNOD exactly the subjects that are exported to it:

    account AGENT_RUNTIME                        account SYNOD
    $JS.API.STREAM.INFO.EVT_CONSENSUS ── import ──▶ export, to AGENT_RUNTIME among others
    $JS.API.STREAM.DELETE.EVT_CONSENSUS             not exported: nobody answers, and the user is refused anyway

Permissions of users in one common account would not do. A server delivers an answer to whatever subject the request names for
it, and takes it into a stream that listens there: any user could write into any stream by asking for an acknowledgement, or for
a message of its own, with a foreign subject as the reply. Between accounts an answer finds its way back to the asker only. For
the same reason no client listens in SYNOD to a subject of a stream: a push consumer delivers only where somebody listens.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from synod.common import streams
from synod.common.streams import Json, Stream
from synod.common.subjects import (
    all_events,
    checkpoint_subject,
    command_stream,
    command_subject,
    dead_letter_stream,
    dead_letter_subject,
    event_stream,
    past_subject,
    token_subject,
)

from launcher.keys import ADMINISTRATOR, CLIENT, OBSERVER
from launcher.layout import Service

HUB = "SYNOD"
API = "$JS.API"
IMPORTED_API = f"{HUB}.API"
"""An account answers $JS.API itself, to say that it has no streams; so requests are mapped to where the imports are."""
LINE_MAX = 160
INBOX = "_INBOX.>"
CLIENT_INBOX = "_INBOX_client.>"
ADMINISTRATOR_INBOX = "_INBOX_administrator.>"
TOKENS = token_subject("*", "*")
ANSWERS = "_R_.>"
"""What a server makes of the subject that a request from another account names for its answer. The permission to answer
whatever is heard (allow_responses) would do too, but for each message that a user hears the server remembers for a minute that
it may: 600,000 events read are 200 MB."""
_MANY_ANSWERS = ("CONSUMER.MSG.NEXT", "DIRECT.GET", "STREAM.LIST", "STREAM.NAMES")


@dataclass(frozen=True, slots=True)
class Member:
    """An account outside the hub, with one user of the same name."""

    user: str
    asks: tuple[str, ...]
    """Subjects of the hub that it may publish to; answers come back to it."""
    says: tuple[str, ...] = ()
    """Subjects that stay in its account."""
    hears: tuple[str, ...] = (INBOX,)
    offers: tuple[tuple[str, str], ...] = ()
    """(subject, user): what another member hears of this one."""
    from_hub: tuple[str, ...] = ()
    """What it hears of the hub without asking."""
    answers: tuple[str, ...] = ()
    """Subjects on which others may ask it."""
    asks_members: tuple[tuple[str, str], ...] = ()
    """(subject, user): on which it may ask a member."""

    @property
    def account(self) -> str:
        return account_of(self.user)


def account_of(user: str) -> str:
    return user.replace("-", "_").upper()


def members(services: Sequence[Service]) -> tuple[Member, ...]:
    """Everybody but the administrator."""
    names = [service.name for service in services]
    return (*(_service(service, names) for service in services), _observer(services), _client())


def stream_plans(services: Sequence[Service]) -> Mapping[str, Json]:
    """The document for servicekit.nats_admin: every stream, and the consumers that are not made by who reads.

    Readers of events make consumers of their own, which expire; so do agents outside, one for each agent.
    """
    shared: tuple[Stream, ...] = (streams.CHECKPOINTS, streams.AGENT_TASKS, streams.AGENT_ANSWERS)
    entries = [entry for service in services for entry in _entries(service)]
    return {"streams": [*entries, *(_entry(stream, None) for stream in shared)]}


def authorization(services: Sequence[Service], passwords: Mapping[str, str]) -> Mapping[str, Json]:
    """The part of NATS's configuration that says who may what; a user without password is left out of `passwords`."""
    everybody = members(services)
    hub: dict[str, Json] = {
        "jetstream": "enabled",
        "users": [_user(ADMINISTRATOR, passwords, (f"{API}.>",), (ADMINISTRATOR_INBOX,))],
        "exports": list(_exports(everybody)),
    }
    return {"accounts": {HUB: hub, **{each.account: _account(each, everybody, passwords) for each in everybody}}}


def rendered(services: Sequence[Service], variables: Mapping[str, str]) -> str:
    """`authorization` as text with a variable in place of each password."""
    accounts = authorization(services, {user: f"${name}" for user, name in variables.items()})["accounts"]
    text = f"accounts: {compact(accounts)}\n"
    for name in variables.values():
        text = text.replace(f'"${name}"', f"${name}")
    return text


def compact(value: Json, indent: str = "") -> str:
    """JSON in which what fits into a line is one."""
    line = json.dumps(value)
    if len(indent) + len(line) <= LINE_MAX or not isinstance(value, Mapping | list):
        return line
    inner = f"{indent}  "
    if isinstance(value, Mapping):
        parts = [f"{json.dumps(key)}: {compact(each, inner)}" for key, each in value.items()]
        return "{\n" + ",\n".join(inner + part for part in parts) + f"\n{indent}}}"
    return "[\n" + ",\n".join(inner + compact(each, inner) for each in value) + f"\n{indent}]"


def _entries(service: Service) -> Iterator[Json]:
    yield _entry(streams.events_of(service.name), None)
    if service.commands:
        yield _entry(streams.commands_of(service.name), [each.config() for each in service.commands])
        yield _entry(streams.dead_letters_of(service.name), [])


def _entry(stream: Stream, consumers: Sequence[Json] | None) -> Json:
    return {"config": stream.config(), "consumers": consumers}


def _service(service: Service, present: Sequence[str]) -> Member:
    name, own = service.name, event_stream(service.name)
    asks = [all_events(name), checkpoint_subject(name), f"{API}.INFO", f"{API}.STREAM.INFO.{own}"]
    asks += [f"{API}.STREAM.MSG.GET.{own}"]
    asks += [subject for other in service.reads for subject in _reading(event_stream(other))]
    asks += [command_subject("*", other, ">") for other in service.sends]
    asks += [f"{API}.STREAM.LIST"] if service.monitors else []
    if service.commands:
        asks += _working(service)
    offers = ((TOKENS, OBSERVER),) if service.has_tokens else ()
    said = (TOKENS,) if service.has_tokens else ()
    past = tuple((past_subject(other), other) for other in service.reads if other in present)
    return Member(name, _once(asks), said, (INBOX, *said), offers, answers=(past_subject(name),), asks_members=past)


def _working(service: Service) -> Iterator[str]:
    """Taking commands, putting them aside, and putting them back."""
    name, queue, dead = service.name, command_stream(service.name), dead_letter_stream(service.name)
    yield dead_letter_subject("*", name)
    yield command_subject("*", name, ">")
    for stream in (queue, dead):
        yield f"{API}.STREAM.INFO.{stream}"
    for consumer in service.commands:
        yield f"{API}.CONSUMER.INFO.{queue}.{consumer.name}"
        yield f"{API}.CONSUMER.MSG.NEXT.{queue}.{consumer.name}"
    yield f"$JS.ACK.{queue}.>"
    yield f"{API}.STREAM.MSG.GET.{dead}"
    yield f"{API}.STREAM.MSG.DELETE.{dead}"


def _reading(stream: str) -> Iterator[str]:
    """By consumers of one's own. Their names are random and nobody may list them, so none can be taken from another."""
    yield f"{API}.STREAM.INFO.{stream}"
    yield f"{API}.DIRECT.GET.{stream}"
    yield f"{API}.CONSUMER.CREATE.{stream}"
    for verb in ("CREATE", "INFO", "DELETE", "MSG.NEXT"):
        yield f"{API}.CONSUMER.{verb}.{stream}.*"


def _observer(services: Sequence[Service]) -> Member:
    """Whoever may read all events: by consumers of its own, as any client of JetStream makes them."""
    readable = [*(event_stream(service.name) for service in services), streams.CHECKPOINT_STREAM]
    asks = [f"{API}.{verb}" for verb in ("INFO", "STREAM.NAMES", "STREAM.LIST")]
    for stream in readable:
        asks += [*_reading(stream), f"{API}.CONSUMER.CREATE.{stream}.*.>", f"{API}.DIRECT.GET.{stream}.>"]
        asks += [f"$JS.FC.{stream}.>"]
    return Member(OBSERVER, _once(asks), hears=(INBOX, TOKENS), from_hub=(INBOX,))


def _client() -> Member:
    """Programs that ask agents outside, and those agents: they share a login, and the streams of tasks and answers."""
    tasks, answers = streams.AGENT_TASKS, streams.AGENT_ANSWERS
    asks = [*tasks.subjects, *answers.subjects, f"$JS.ACK.{tasks.name}.>"]
    asks += [f"{API}.STREAM.INFO.{stream.name}" for stream in (tasks, answers)]
    asks += [f"{API}.DIRECT.GET.{answers.name}", f"{API}.DIRECT.GET.{answers.name}.>"]
    asks += [f"{API}.CONSUMER.{verb}.{tasks.name}.>" for verb in ("CREATE", "DURABLE.CREATE", "INFO", "MSG.NEXT")]
    return Member(CLIENT, _once(asks), hears=(*answers.subjects, CLIENT_INBOX))


def _once(subjects: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(subjects))


def _exports(everybody: Sequence[Member]) -> Iterator[Json]:
    """Each subject once, to those who may ask it."""
    for subject in _once(subject for each in everybody for subject in each.asks):
        accounts = [each.account for each in everybody if subject in each.asks]
        many = any(verb in subject for verb in _MANY_ANSWERS)
        yield {"service": subject, "response_type": "stream" if many else "singleton", "accounts": accounts}
    for subject in _once(subject for each in everybody for subject in each.from_hub):
        yield {"stream": subject, "accounts": [each.account for each in everybody if subject in each.from_hub]}


def _account(member: Member, everybody: Sequence[Member], passwords: Mapping[str, str]) -> Json:
    imports: list[Json] = [
        {"service": {"account": HUB, "subject": subject}, "to": _imported(subject)} for subject in member.asks
    ]
    imports += [{"stream": {"account": HUB, "subject": subject}} for subject in member.from_hub]
    imports += [
        {"stream": {"account": other.account, "subject": subject}}
        for other in everybody
        for subject, user in other.offers
        if user == member.user
    ]
    imports += [
        {"service": {"account": account_of(user), "subject": subject}}
        for subject, user in member.asks_members
        if user != member.user
    ]
    offered: list[Json] = [{"stream": subject, "accounts": [account_of(user)]} for subject, user in member.offers]
    for subject in member.answers:
        asking = [
            other.account for other in everybody if other != member and (subject, member.user) in other.asks_members
        ]
        offered += [{"service": subject, "response_type": "stream", "accounts": asking}] if asking else []
    asked = [subject for subject, _ in member.asks_members]
    answers = [ANSWERS] if member.answers else []
    answers += [INBOX] if any(user == member.user for _, user in member.asks_members) else []
    says = (*map(_imported, member.asks), *member.says, *asked, *answers)
    return {
        "users": [_user(member.user, passwords, says, (*member.hears, *member.answers))],
        "mappings": {f"{API}.>": f"{IMPORTED_API}.>"},
        "imports": imports,
        "exports": offered,
    }


def _imported(subject: str) -> str:
    """Where a subject of the hub is in an account; what a client asks $JS.API is mapped to there before it is judged."""
    return subject.replace(API, IMPORTED_API)


def _user(name: str, passwords: Mapping[str, str], publish: Sequence[str], subscribe: Sequence[str]) -> Json:
    permissions: Json = {"publish": {"allow": list(publish)}, "subscribe": {"allow": list(subscribe)}}
    return {"user": name, "password": passwords[name], "permissions": permissions}

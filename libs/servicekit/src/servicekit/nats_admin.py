"""Brings a NATS server's streams and consumers in step with a document, and reports where they are not.

    python -m servicekit.nats_admin apply deploy/nats/jetstream.json [--replicas 3]
    python -m servicekit.nats_admin check deploy/nats/jetstream.json

The document: {"streams": [{"config": {...}, "consumers": [{...}] or null}]}, configurations in the form of JetStream's API.
With null for consumers whoever reads the stream makes its own. The server is that of SYNOD_NATS_URL, the user SYNOD_NATS_USER
with SYNOD_NATS_PASSWORD or the content of SYNOD_NATS_PASSWORD_FILE; by TLS with SYNOD_TLS_CA_FILE, SYNOD_TLS_CERTIFICATE_FILE
and SYNOD_TLS_KEY_FILE.

Exit code 0 if all is in step; 1 if something drifts (`check`), or could not be mended (`apply`); 2 if NATS does not answer.
`apply` makes what is missing, changes what differs and deletes nothing: what is unknown is only reported.
"""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import nats
from nats.aio.client import Client
from nats.errors import Error as NatsError
from synod.common.streams import Json

from servicekit.tls import TlsFiles, TlsInvalid

REQUEST_TIMEOUT_S = 5.0
INBOX = "_INBOX_administrator"
"""Answers to an administrator go where no other user listens."""
IN_STEP, DRIFTS, UNREACHABLE = 0, 1, 2
_BOOKKEEPING = frozenset({"metadata"})
"""What the server writes into a configuration for itself."""

Config = Mapping[str, Json]
Login = tuple[str | None, str | None]
"""User and password, if they do not stand in the URL."""


@dataclass(frozen=True, slots=True)
class StreamPlan:
    """A stream and its durable consumers; `consumers` is None where readers make their own."""

    config: Config
    consumers: tuple[Config, ...] | None

    @property
    def name(self) -> str:
        return str(self.config["name"])


@dataclass(frozen=True, slots=True)
class Kept:
    """What the server has: a stream and its durable consumers."""

    config: Config
    consumers: tuple[Config, ...] = ()


@dataclass(frozen=True, slots=True)
class Missing:
    what: str

    def __str__(self) -> str:
        return f"{self.what}: is missing"


@dataclass(frozen=True, slots=True)
class Differs:
    what: str
    field: str
    wanted: Json
    found: Json

    def __str__(self) -> str:
        return f"{self.what}: {self.field} should be {json.dumps(self.wanted)} and is {json.dumps(self.found)}"


@dataclass(frozen=True, slots=True)
class Unknown:
    what: str

    def __str__(self) -> str:
        return f"{self.what}: is not in the document"


Drift = Missing | Differs | Unknown


class Refused(Exception):
    """JetStream did not do what it was asked; `code` is its own."""

    def __init__(self, subject: str, code: int, description: str) -> None:
        super().__init__(f"{subject}: {description}")
        self.code = code


class Unreachable(Exception):
    """NATS does not answer, or refuses the login."""


def read_plans(document: str) -> tuple[StreamPlan, ...]:
    """Raises ValueError or KeyError for what is no such document."""
    return tuple(
        StreamPlan(each["config"], None if each["consumers"] is None else tuple(each["consumers"]))
        for each in json.loads(document)["streams"]
    )


def with_replicas(plans: Sequence[StreamPlan], replicas: int) -> tuple[StreamPlan, ...]:
    """The same on a cluster: every stream on so many servers."""
    return tuple(StreamPlan({**plan.config, "num_replicas": replicas}, plan.consumers) for plan in plans)


def drift(plans: Sequence[StreamPlan], kept: Mapping[str, Kept]) -> tuple[Drift, ...]:
    """All that is not as planned, in the order of the plan, what is unknown last."""
    found = [each for plan in plans for each in _of_stream(plan, kept.get(plan.name))]
    planned = {plan.name for plan in plans}
    return (*found, *(Unknown(f"stream {name}") for name in sorted(kept) if name not in planned))


def _of_stream(plan: StreamPlan, kept: Kept | None) -> Iterator[Drift]:
    if kept is None:
        yield Missing(f"stream {plan.name}")
        for config in plan.consumers or ():
            yield Missing(_consumer(plan.name, config))
        return
    yield from differing(f"stream {plan.name}", plan.config, kept.config)
    if plan.consumers is not None:
        yield from _of_consumers(plan.name, plan.consumers, kept.consumers)


def _of_consumers(stream: str, planned: Sequence[Config], kept: Sequence[Config]) -> Iterator[Drift]:
    by_name = {_consumer(stream, config): config for config in kept}
    for config in planned:
        what = _consumer(stream, config)
        found = by_name.pop(what, None)
        yield from [Missing(what)] if found is None else differing(what, config, found)
    yield from map(Unknown, by_name)


def differing(what: str, wanted: Config, found: Config) -> Iterator[Differs]:
    """Fields with other values. A field that is not wanted must be off: else a stream could be made to republish."""
    for field in sorted((wanted.keys() | found.keys()) - _BOOKKEEPING):
        # The server leaves out what is off.
        if (wanted.get(field) or None) != (found.get(field) or None):
            yield Differs(what, field, wanted.get(field), found.get(field))


def _consumer(stream: str, config: Config) -> str:
    return f"consumer {config['durable_name']} of {stream}"


@dataclass(frozen=True, slots=True)
class Administrator:
    """JetStream's API, as a user that may change streams. Owns no connection."""

    client: Client

    async def drift(self, plans: Sequence[StreamPlan]) -> tuple[Drift, ...]:
        """Raises Refused, Unreachable."""
        return drift(plans, await self.kept())

    async def apply(self, plans: Sequence[StreamPlan]) -> tuple[Drift, ...]:
        """Makes and changes what drifts; answers what it found so. Raises Refused at the first that cannot be mended."""
        kept = await self.kept()
        for plan in plans:
            await self._apply_stream(plan, kept.get(plan.name))
        return drift(plans, kept)

    async def kept(self) -> Mapping[str, Kept]:
        """Every stream with its durable consumers."""
        configs = {str(info["config"]["name"]): info["config"] async for info in self._pages("STREAM.LIST", "streams")}
        return {name: Kept(config, await self._consumers(name)) for name, config in configs.items()}

    async def _consumers(self, stream: str) -> tuple[Config, ...]:
        infos = [info["config"] async for info in self._pages(f"CONSUMER.LIST.{stream}", "consumers")]
        return tuple(config for config in infos if config.get("durable_name"))

    async def _apply_stream(self, plan: StreamPlan, kept: Kept | None) -> None:
        if kept is None:
            await self._ask(f"STREAM.CREATE.{plan.name}", plan.config)
        elif any(differing(plan.name, plan.config, kept.config)):
            await self._ask(f"STREAM.UPDATE.{plan.name}", plan.config)
        known = {config["durable_name"]: config for config in kept.consumers} if kept else {}
        for config in plan.consumers or ():
            found = known.get(config["durable_name"])
            if found is None or any(differing("", config, found)):
                subject = f"CONSUMER.DURABLE.CREATE.{plan.name}.{config['durable_name']}"
                await self._ask(subject, {"stream_name": plan.name, "config": config})

    async def _pages(self, subject: str, field: str) -> AsyncIterator[Mapping[str, Config]]:
        offset = 0
        while True:
            answer = await self._ask(subject, {"offset": offset})
            found = cast("list[Mapping[str, Config]]", answer.get(field) or [])
            for each in found:
                yield each
            offset += len(found)
            if not found or offset >= cast(int, answer["total"]):
                return

    async def _ask(self, subject: str, body: Config) -> Config:
        full = f"$JS.API.{subject}"
        try:
            message = await self.client.request(full, json.dumps(body).encode(), timeout=REQUEST_TIMEOUT_S)
        except NatsError as error:
            raise Unreachable(f"{full}: {error!r}; is this user the administrator?") from error
        answer: dict[str, Json] = json.loads(message.data)
        if refusal := cast("Mapping[str, Json] | None", answer.get("error")):
            raise Refused(full, cast(int, refusal.get("err_code", 0)), str(refusal.get("description")))
        return answer


@asynccontextmanager
async def administrator(
    url: str, user: str | None = None, password: str | None = None, tls: TlsFiles | None = None
) -> AsyncIterator[Administrator]:
    """Connected as the administrator. Raises Unreachable, TlsInvalid."""
    secured = tls.read(datetime.now(UTC)).nats_options() if tls else {}
    problems: list[Exception] = []

    async def note(error: Exception) -> None:
        problems.append(error)

    try:
        client = await nats.connect(
            url,
            user=user,
            password=password,
            name="administrator",
            inbox_prefix=INBOX,
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            error_cb=note,
            **secured,
        )
    except (NatsError, OSError, TimeoutError) as error:
        raise Unreachable(f"NATS does not answer: {problems[-1] if problems else error}") from error
    try:
        yield Administrator(client)
    finally:
        await client.close()


async def run(
    plans: Sequence[StreamPlan],
    url: str,
    login: Login = (None, None),
    *,
    is_check: bool = False,
    tls: TlsFiles | None = None,
) -> int:
    """Applies or checks, prints what drifts, and answers the exit code."""
    try:
        async with administrator(url, *login, tls) as admin:
            return await _run(admin, plans, is_check)
    except Refused as error:
        _say(f"not mended: {error}")
        return DRIFTS
    except (Unreachable, TlsInvalid) as error:
        _say(str(error))
        return UNREACHABLE


async def _run(admin: Administrator, plans: Sequence[StreamPlan], is_check: bool) -> int:
    found = await (admin.drift(plans) if is_check else admin.apply(plans))
    left = found if is_check else await admin.drift(plans)
    for each in found:
        _say(str(each) if each in left else f"{each}; mended")
    unmended = [each for each in left if is_check or not isinstance(each, Unknown)]
    _say(f"{len(plans)} streams planned, " + (f"{len(left)} things drift" if left else "all in step"))
    return DRIFTS if unmended else IN_STEP


def main(arguments: Sequence[str] | None = None) -> int:
    options, environment = _parser().parse_args(arguments), os.environ
    plans = read_plans(options.document.read_text())
    if options.replicas:
        plans = with_replicas(plans, options.replicas)
    login = (environment.get("SYNOD_NATS_USER"), _password(environment))
    url = environment.get("SYNOD_NATS_URL", "nats://127.0.0.1:4222")
    try:
        tls = TlsFiles.of_environment(environment)
    except TlsInvalid as error:
        _say(str(error))
        return UNREACHABLE
    return asyncio.run(run(plans, url, login, is_check=options.deed == "check", tls=tls))


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def _password(environment: Mapping[str, str]) -> str | None:
    file = environment.get("SYNOD_NATS_PASSWORD_FILE")
    return Path(file).read_text().strip() if file else environment.get("SYNOD_NATS_PASSWORD")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m servicekit.nats_admin", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("deed", choices=("apply", "check"))
    parser.add_argument("document", type=Path)
    parser.add_argument(
        "--replicas", type=int, default=0, help="servers that keep each stream, if not as the document says"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())

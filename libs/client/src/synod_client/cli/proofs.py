"""Checkpoints and proofs for others to keep and check, and the erasure of a person."""

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import typer

from synod_client.checkpoints import PublicKeys
from synod_client.cli.events import Service
from synod_client.cli.output import as_dict, print_json, print_table
from synod_client.cli.session import AsJson, Data, run
from synod_client.cli.values import POSITION_MAX
from synod_client.client import Synod
from synod_client.errors import Refused

_OFF = "NOT_CONFIGURED"
"""The reason of a service that was started without a master key: it holds no personal data."""


def checkpoints(
    service: Service,
    after: Annotated[
        int, typer.Option("--after", help="Checkpoints with a greater position.", min=0, max=POSITION_MAX)
    ] = 0,
    data: Data = None,
) -> None:
    """Print the signed checkpoints of a log, one JSON document a line, to be kept where nobody can take them back.

    Example: synod events checkpoints cost-ledger
    """

    async def command(synod: Synod) -> None:
        position = after
        while page := await synod.checkpoints(service, after=position):
            for checkpoint in page:
                typer.echo(json.dumps(as_dict(checkpoint)))
            position = page[-1].position

    run(command, data)


def prove(
    service: Service,
    position: Annotated[int | None, typer.Argument(help="Position of the event.", min=1, max=POSITION_MAX)] = None,
    stream: Annotated[str, typer.Option("--stream", help='Instead: all of this stream, "<aggregate>/<id>".')] = "",
    out: Annotated[Path, typer.Option("--out", help="Directory for the files.")] = Path(),
    data: Data = None,
) -> None:
    """Write an event, its proof and the checkpoint over it, for a third party to check with verify_inclusion.py.

    With --stream: all events of a stream and the proof of its last, to be checked with verify_stream.py. The public key of
    a system on this machine is written too; the third party should have it from somewhere else.

    Example: synod events prove cost-ledger 17 --out proof
    """
    if (position is None) == (not stream):
        raise typer.BadParameter("give a position or --stream, and not both")

    async def command(synod: Synod) -> None:
        found = await (_event(synod, service, position) if position else _stream(synod, service, stream))
        out.mkdir(parents=True, exist_ok=True)
        for name, document in found.documents.items():
            (out / name).write_text(json.dumps(document, indent=2) + "\n")
        pem = PublicKeys.of_system(synod.connection.endpoints.data, service).pem(found.key_id)
        if pem:
            (out / "public.pem").write_bytes(pem)
        names = " ".join([*found.documents, *(["public.pem"] if pem else [])])
        typer.echo(f"{out}: {names}; signed by key {found.key_id}")

    run(command, data)


@dataclass(frozen=True, slots=True)
class _Proven:
    """What is written to files, and by which key it is signed."""

    documents: dict[str, object]
    key_id: str


async def _event(synod: Synod, service: str, position: int) -> _Proven:
    found = await synod.inclusion_proof(service, position)
    parts = {"event.json": found.event, "proof.json": found.proof, "checkpoint.json": found.checkpoint}
    return _Proven({name: as_dict(message) for name, message in parts.items()}, found.checkpoint.key_id)


async def _stream(synod: Synod, service: str, stream: str) -> _Proven:
    events = await synod.export_stream(service, stream)
    unnamed = [event for event, after in pairwise(events) if not after.HasField("stream_previous_hash")]
    found = [await synod.inclusion_proof(service, end.position) for end in (*unnamed, events[-1])]
    proofs = [{"proof": as_dict(each.proof), "checkpoint": as_dict(each.checkpoint)} for each in found]
    documents: dict[str, object] = {"stream.json": list(map(as_dict, events)), "proofs.json": proofs}
    return _Proven(documents, found[-1].checkpoint.key_id)


def rotate_key(service: Service, data: Data = None) -> None:
    """Encrypt the payloads of a log, where encryption at rest is on, from here on with a new key.

    Example: synod events rotate-key cost-ledger
    """

    async def command(synod: Synod) -> None:
        typer.echo(
            f"{service}: payloads are encrypted with data key {await synod.rotate_data_key(service)} from here on"
        )

    run(command, data)


def erase(
    subject: Annotated[str, typer.Argument(help="Whom to forget, as the events name them.")],
    reason: Annotated[str, typer.Option("--reason", help="Why, for the record.")],
    service: Annotated[list[str] | None, typer.Option("--service", help="Only this service; repeatable.")] = None,
    as_json: AsJson = False,
    data: Data = None,
) -> None:
    """Destroy the key of a person's data in every service, for ever: all copies of it become unreadable.

    Example: synod erase person-17 --reason "asked by letter"
    """

    async def command(synod: Synod) -> None:
        rows: list[tuple[object, ...]] = []
        for name in service or synod.services:
            try:
                done = await synod.erase_subject(name, subject, reason)
            except Refused as error:
                if error.reason != _OFF:
                    raise
                continue
            key = "destroyed" if done.key_destroyed else "there was none"
            rows.append((name, key, done.snapshots_dropped, ", ".join(done.views_rebuilt), done.position))
        if as_json:
            return print_json([dict(zip(_COLUMNS, row, strict=True)) for row in rows])
        return print_table("", ("service", "key", "snapshots>", "views rebuilt", "recorded at>"), rows)

    run(command, data)


def erasures(as_json: AsJson = False, data: Data = None) -> None:
    """List erasures that were begun and have not ended. The services go on with them by themselves.

    Example: synod erasures
    """

    async def command(synod: Synod) -> None:
        rows = [
            (name, each.data_subject, each.actor, each.reason, each.began_at.ToJsonString())
            for name in synod.services
            for each in await synod.erasures(name)
        ]
        if as_json:
            return print_json([dict(zip(_PENDING, row, strict=True)) for row in rows])
        return print_table("", ("service", "subject", "asked by", "reason", "since"), rows)

    run(command, data)


_PENDING = ("service", "subject", "actor", "reason", "began_at")
_COLUMNS = ("service", "key", "snapshots_dropped", "views_rebuilt", "position")

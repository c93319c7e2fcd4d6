"""Brings the streams of a running NATS in step with what bus.py says that there are."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

from servicekit.nats_admin import UNREACHABLE, Refused, StreamPlan, Unreachable, administrator, read_plans, run
from servicekit.tls import TlsFiles, TlsInvalid

from launcher.bus import stream_plans
from launcher.errors import StartFailed
from launcher.layout import SERVICES, Service

__all__ = ["UNREACHABLE", "administer", "make_streams", "plans_of"]


def make_streams(url: str, services: Sequence[Service], tls: TlsFiles | None = None) -> None:
    """Makes what is missing and changes what differs. `url` has the administrator's login.

    Raises StartFailed if NATS refuses. Not to be called where an event loop runs.
    """
    try:
        asyncio.run(_apply(url, services, tls))
    except (Refused, Unreachable, TlsInvalid) as error:
        remedy = (
            "See what differs with `synod nats check`. A stream of events that is deleted is filled again from its log."
        )
        raise StartFailed("streams", "of NATS", str(error), remedy) from error


def administer(url: str, *, is_check: bool, tls: tuple[Path, Path, Path] | None = None) -> int:
    """Applies or checks, prints what drifts, and answers the exit code (servicekit.nats_admin).

    `tls` are the files of authorities, certificate and key.
    """
    files = TlsFiles(*tls) if tls else None
    return asyncio.run(run(plans_of(SERVICES), url, is_check=is_check, tls=files))


def plans_of(services: Sequence[Service]) -> tuple[StreamPlan, ...]:
    return read_plans(json.dumps(stream_plans(services)))


async def _apply(url: str, services: Sequence[Service], tls: TlsFiles | None) -> None:
    async with administrator(url, tls=tls) as admin:
        await admin.apply(plans_of(services))

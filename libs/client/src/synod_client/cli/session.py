"""Runs an asynchronous command: connects, and turns errors into messages and exit codes."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated

import typer

from synod_client.cli.output import Exit, exit_code, print_error
from synod_client.client import Synod
from synod_client.endpoints import Endpoints
from synod_client.errors import SynodError

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Data = Annotated[
    Path | None,
    typer.Option("--data", envvar="SYNOD_DATA", help="Directory of a system here. Default: ~/.local/share/synod"),
]


def run(command: Callable[[Synod], Awaitable[int | None]], data: Path | None = None) -> None:
    """Connects, runs, and exits with the command's code."""
    try:
        code = asyncio.run(_connected(command, data))
    except SynodError as error:
        print_error(error)
        raise typer.Exit(exit_code(error)) from error
    except KeyboardInterrupt:
        raise typer.Exit(Exit.INTERRUPTED) from None
    raise typer.Exit(code or 0)


async def _connected(command: Callable[[Synod], Awaitable[int | None]], data: Path | None) -> int | None:
    async with Synod.connect(Endpoints.discover(data=data)) as synod:
        return await command(synod)

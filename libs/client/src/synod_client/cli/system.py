"""up and demo: the whole system on this machine, and its main job with the proof that it did it."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from synod_client.cli.output import Exit, errors, exit_code, print_error
from synod_client.cli.session import Data
from synod_client.errors import SynodError

PortBase = Annotated[
    int, typer.Option("--port-base", help="Services listen on this + 1 to + 7, NATS on + 42, HTTP on + 980 and + 981.")
]


def up(
    data: Data = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Empty the data directory first.")] = False,
    simulator: Annotated[
        bool,
        typer.Option("--simulator/--no-simulator", help="Also run the provider simulator (model simulator/sim-1)."),
    ] = True,
    tls: Annotated[bool, typer.Option("--tls", help="gRPC and NATS by mutual TLS; see `synod tls`.")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="Print lines instead of a live view.")] = False,
    port_base: PortBase = 7100,
) -> None:
    """Start PostgreSQL, NATS and every service here; Ctrl-C stops them all.

    Real models are called when OPENAI_API_KEY, ANTHROPIC_API_KEY or OLLAMA_HOST is set.

    Example: synod up --data ./synod-data
    """
    from launcher import up as launcher_up

    options = launcher_up.UpOptions(
        data=data, port_base=port_base, fresh=fresh, simulator=simulator, tls=tls, plain=plain
    )
    raise typer.Exit(launcher_up.run(options))


def demo(
    example: Annotated[Path, typer.Option(help="Folder of the example.", exists=True, file_okay=False)] = Path(
        "deploy/examples/model-scout"
    ),
    out: Annotated[Path, typer.Option(help="Where the report, the chart and demo.json go.")] = Path("build"),
    model: Annotated[str, typer.Option(help="Run all agents on this model instead, such as openai/gpt-5.5.")] = "",
    data: Annotated[Path | None, typer.Option(help="Data directory; default <out>/demo-data, emptied first.")] = None,
    running: Annotated[bool, typer.Option("--running", help="Use the system that is up; start none.")] = False,
    port_base: PortBase = 7100,
) -> None:
    """Run the example team, print its report, cost and votes, then prove it all. Exits with 1 when a proof fails.

    Example: synod demo
    """
    from launcher.errors import LauncherError

    from synod_client.demo import Options, run

    options = Options(example=example, out=out, model=model, data=data, running=running, port_base=port_base)
    try:
        proved = asyncio.run(run(options))
    except SynodError as error:
        print_error(error)
        raise typer.Exit(exit_code(error)) from error
    except KeyboardInterrupt:
        raise typer.Exit(Exit.INTERRUPTED) from None
    except LauncherError as error:
        errors.print(f"error {error}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(Exit.UNAVAILABLE) from error
    raise typer.Exit(Exit.DONE if proved else Exit.NOT_TRUE)

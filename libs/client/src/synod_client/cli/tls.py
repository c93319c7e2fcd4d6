"""tls: the certificates of a system here, of a development authority."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from synod_client.cli.output import Exit, console, errors, print_table
from synod_client.cli.session import Data
from synod_client.endpoints import default_data_directory

tls_app = typer.Typer(
    help="The certificates of a system that speaks TLS: made, renewed and replaced while it runs.", no_args_is_help=True
)


@tls_app.command("init")
def init(data: Data = None) -> None:
    """Make a certificate authority and everybody's certificates: what is missing, and what is due for renewal.

    They hold for 30 days. `synod up --tls` does this by itself.

    Example: synod tls init --data deploy/compose/secrets
    """
    from launcher import certificates

    with _directory(data) as directory:
        _say_renewed(certificates.ensure(directory, certificates.utc_now()))


@tls_app.command("rotate")
def rotate(
    data: Data = None,
    introduce: Annotated[
        bool, typer.Option("--introduce", help="Have a new authority believed; the next rotation is by it.")
    ] = False,
    retire: Annotated[bool, typer.Option("--retire", help="Have former authorities believed no more.")] = False,
) -> None:
    """Renew every certificate now. Services take them up within seconds; NATS in containers when it gets a SIGHUP.

    To replace the authority too: rotate --introduce, half a minute later rotate, and again later rotate --retire.

    Example: synod tls rotate
    """
    from launcher import certificates

    with _directory(data) as directory:
        now = certificates.utc_now()
        if introduce:
            certificates.introduce(directory, now)
            console.print("another authority is believed beside the present one; the next rotation is by it")
        elif retire:
            names = certificates.retire(directory, now)
            console.print(f"believed no more: {', '.join(names) or 'there was no former authority'}")
        else:
            _say_renewed(certificates.renew(directory, now))


@tls_app.command("issue")
def issue(
    name: Annotated[str, typer.Argument(help="Whom it is for, such as host-7.")],
    data: Data = None,
) -> None:
    """Make a certificate for one more client outside, and print the variables that it is to set.

    Example: synod tls issue host-7
    """
    from launcher import certificates

    with _directory(data) as directory:
        certificates.issue(directory, name, certificates.utc_now())
        for variable, value in certificates.settings_of(directory, name).items():
            typer.echo(f"{variable}={value}")


@tls_app.command("show")
def show(data: Data = None) -> None:
    """List the authorities and certificates, and until when they hold.

    Example: synod tls show
    """
    from launcher import certificates

    with _directory(data) as directory:
        rows = [
            (each.name, f"{each.expires_at:%Y-%m-%d %H:%M}", each.signed_by, each.serial)
            for each in certificates.shown(directory)
        ]
    print_table("", ("name", "until (UTC)", "signed by", "serial"), rows)


@contextmanager
def _directory(data: Path | None) -> Iterator[Path]:
    from launcher.errors import LauncherError

    try:
        yield (data or default_data_directory()) / "tls"
    except LauncherError as error:
        errors.print(f"error {error}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(Exit.REFUSED) from error


def _say_renewed(names: tuple[str, ...]) -> None:
    console.print(f"new certificates: {', '.join(names) or 'none is due'}")

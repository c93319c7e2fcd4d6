"""nats: the streams of NATS, made and compared with what they should be."""

from typing import Annotated

import typer

from synod_client.cli.output import Exit, exit_code, print_error
from synod_client.cli.session import Data
from synod_client.endpoints import Endpoints, administrator_url
from synod_client.errors import SynodError

nats_app = typer.Typer(help="The streams of NATS: make what is missing, report what differs.", no_args_is_help=True)
Url = Annotated[
    str, typer.Option("--url", help="NATS with the administrator's login; default keys/administrator.nats.")
]


@nats_app.command("apply")
def apply(
    data: Data = None,
    url: Url = "",
    check: Annotated[bool, typer.Option("--check", help="Change nothing; exit with 1 if anything differs.")] = False,
) -> None:
    """Make missing streams and consumers and mend what differs; `synod up` does it by itself at each start.

    Prints every difference with both values. Deletes nothing: streams that nobody planned are reported.

    Example: synod nats apply --check
    """
    _administer(data, url, is_check=check)


@nats_app.command("check")
def check(data: Data = None, url: Url = "") -> None:
    """Report missing, differing and unknown streams and consumers; exit with 1 if there are any.

    Example: synod nats check
    """
    _administer(data, url, is_check=True)


def _administer(data: Data, url: str, *, is_check: bool) -> None:
    from launcher.streams import UNREACHABLE, administer

    try:
        address = url or administrator_url(data)
        client = Endpoints.discover(data=data).tls
    except SynodError as error:
        print_error(error)
        raise typer.Exit(exit_code(error)) from error
    tls = (client.ca, client.certificate, client.key) if client else None
    code = administer(address, is_check=is_check, tls=tls)
    raise typer.Exit(Exit.UNAVAILABLE if code == UNREACHABLE else code)

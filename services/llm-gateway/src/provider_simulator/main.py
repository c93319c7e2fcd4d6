"""Composition root: the simulator as a program of its own."""

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

from aiohttp import web

from provider_simulator.server import Simulator

DEFAULT_PORT = 7199


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGINT or SIGTERM; prints one line with the base URLs once the port is bound."""
    options = _parser().parse_args(arguments)
    origin = f"http://{options.host}:{options.port}"
    simulator = Simulator(now=lambda: datetime.now(UTC))
    web.run_app(
        simulator.application(),
        host=options.host,
        port=options.port,
        access_log=None,
        print=lambda *_: _say(
            f"provider simulator: OpenAI {origin}/v1, Anthropic {origin}, administration {origin}/simulator"
        ),
    )
    return 0


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m provider_simulator", description="A scripted model provider.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: loopback)")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help=f"TCP port (default: {DEFAULT_PORT})")
    return parser

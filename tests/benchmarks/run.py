"""Runs the benchmarks: ``python tests/benchmarks/run.py [--only append] [--size small|full]``."""

import argparse
import asyncio
import importlib
import os
import sys
from pathlib import Path

import uvloop

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

# gRPC would tell of every process that is started beside it.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

NAMES = ("append", "relay", "rebuild", "open", "step", "spawn", "budget", "ledger-rebuild", "gateway", "tls")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=NAMES, action="append", help="repeatable; default all")
    parser.add_argument("--size", choices=("tiny", "small", "full"), default="small")
    options = parser.parse_args(arguments)
    for name in options.only or NAMES:
        # On the event loop that services run on.
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            report = runner.run(importlib.import_module(f"bench_{name.replace('-', '_')}").measure(options.size))
        report.show()
        print(f"wrote {report.write()}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""python -m chaos: so many kills against a log, or against all that the harness knows."""

import argparse
import asyncio
import logging
import secrets
import shutil
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from time import monotonic

from launcher.nats import EmbeddedNats
from launcher.postgres import DURABLE, VOLATILE, EmbeddedPostgres, new_password
from launcher.processes import Warden, free_port

from . import disk, report
from .nemesis import Nemesis
from .plants import PLANTS, Plant
from .report import Summary
from .rounds import Round
from .servers import Servers
from .target_eventlog import EVENTLOG
from .targets import TARGETS

KILLS_A_ROUND = 50
OUT = Path("build/chaos.json")
GRACE_S = 5.0


def main() -> int:
    """0 if our log kept its word, 1 if not."""
    options = _options()
    logging.disable()  # connections that are lost are what this is about
    directory = Path(tempfile.mkdtemp(prefix="synod-chaos-"))
    small, skipped = _small_disk(directory)
    warden = Warden(GRACE_S)
    warden.watch_directory(directory)
    servers = Servers(
        EmbeddedPostgres(directory / "postgres", free_port(), new_password(), VOLATILE if options.quick else DURABLE),
        EmbeddedNats(directory / "nats", free_port(), name="chaos"),
        warden,
        small,
        directory / "files",
    )
    try:
        if options.plants:
            return asyncio.run(_plant(servers, options))
        summaries = asyncio.run(_run(servers, options))
    finally:
        warden.close()
        shutil.rmtree(directory, ignore_errors=True)
    for summary in summaries:
        report.show(summary)
    if skipped:
        print(f"fill disk was left out: {skipped}")
    report.write(OUT, summaries, skipped)
    ours = [summary for summary in summaries if summary.target.startswith("eventlog")]
    return int(any(summary.all.violations for summary in ours))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=1000, help="kill -9 of how many processes, by default 1000")
    parser.add_argument("--seed", default=secrets.token_hex(4), help="the same seed, the same faults in the same order")
    parser.add_argument("--seconds", type=float, default=1500, help="end after so long, by default 1500")
    parser.add_argument("--only", default="", help="some faults alone, by name, separated by commas")
    parser.add_argument(
        "--quick", action="store_true", help="do not flush to disk: kill -9 takes nothing from the kernel"
    )
    parser.add_argument("--target", choices=[*TARGETS, "all"], default="eventlog")
    parser.add_argument("--plants", nargs="+", choices=PLANTS, metavar="NAME", help="plant defects, and find them")
    return parser.parse_args()


def _small_disk(directory: Path) -> tuple[disk.SmallDisk | None, str]:
    try:
        return disk.mount(directory / "disk"), ""
    except (disk.DiskRefused, OSError) as error:
        return None, f"this machine lets us mount no small disk ({error})"


async def _run(servers: Servers, options: argparse.Namespace) -> list[Summary]:
    names = list(TARGETS) if options.target == "all" else [options.target]
    await servers.start()
    try:
        return [await _put_to_the_test(servers, name, options) for name in names]
    finally:
        await servers.stop()


async def _plant(servers: Servers, options: argparse.Namespace) -> int:
    """A round for each defect: 0 if all were found."""
    await servers.start()
    try:
        missed = [name for name in options.plants if not await _is_found(servers, PLANTS[name], options)]
    finally:
        await servers.stop()
    return int(bool(missed))


async def _is_found(servers: Servers, plant: Plant, options: argparse.Namespace) -> bool:
    kind = replace(EVENTLOG, whole=plant.whole)
    deadline_s = monotonic() + options.seconds
    number = 2 * list(PLANTS).index(plant.name) + (not plant.rivals)  # every other round has one writer
    fault = frozenset({plant.fault})
    this = Round(number, options.seed, kind, servers, 1, fault, deadline_s, lambda *_: None, plant)
    outcome = await this.play()
    found = Counter(violation.kind.value for violation in outcome.violations)
    verdict = "found" if found[plant.found.value] else "NOT FOUND"
    print(f"{plant.name}: {plant.found.value} {verdict}; all: {dict(found)}", flush=True)
    return found[plant.found.value] > 0


async def _put_to_the_test(servers: Servers, name: str, options: argparse.Namespace) -> Summary:
    summary = Summary(name, options.seed)
    begun_s = monotonic()
    while summary.kills < options.kills and (summary.rounds == 0 or monotonic() - begun_s < options.seconds):
        progress = Progress(summary, options.kills)
        kills = min(KILLS_A_ROUND, options.kills - summary.kills)
        deadline_s = begun_s + options.seconds
        only = frozenset(filter(None, options.only.split(",")))
        this = Round(summary.rounds, options.seed, TARGETS[name], servers, kills, only, deadline_s, progress.show)
        summary.add(await this.play())
        summary.seconds = monotonic() - begun_s
    progress.end()
    return summary


class Progress:
    """A line that tells how far it is; on a terminal it stays one line."""

    def __init__(self, summary: Summary, kills: int) -> None:
        self._summary = summary
        self._kills_goal = kills
        self._kills = summary.kills
        self._end = "\r" if sys.stderr.isatty() else "\n"

    def show(self, nemesis: Nemesis, recovery_s: float, acked: int) -> None:
        """`acked` counts this round's requests."""
        self._kills += nemesis.weight > 0
        found = sum(self._summary.all.violations.values())
        line = (
            f"{self._summary.target}: round {self._summary.rounds + 1}, kill {self._kills}/{self._kills_goal},"
            f" {self._summary.all.acked + acked:,} acknowledged, {found} violations | {nemesis.name} {recovery_s:.2f} s"
        )
        print(f"{line:<120}", end=self._end, file=sys.stderr, flush=True)

    def end(self) -> None:
        print(file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())

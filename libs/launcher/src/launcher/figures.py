"""What each container of a project costs, as the table of deploy/README.md: its image, its start, its memory.

    python -m launcher.figures [PROJECT] [--base IMAGE]

Asks the container engine by its command `docker`; reads only. Of replicas the largest figure counts.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from launcher.layout import SERVICES, SIMULATOR

BASE = "python:3.11-slim-bookworm"
OURS = "synod/"
READY = re.compile(
    r'"phase":"ready","state":"ok"'  # a service
    r"|database system is ready to accept connections|Server is ready|^provider simulator:"
)
"""What a program logs when it serves."""
BYTES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
ENGINE_S = 60
Number = TypeVar("Number", int, float)
ORDER = (*(service.name for service in SERVICES), SIMULATOR, "postgres", "nats")


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one service; None where the engine or the log does not tell."""

    image_bytes: int | None
    ready_s: float | None
    memory_bytes: int | None

    def largest(self, other: "Figures") -> "Figures":
        return Figures(
            _largest(self.image_bytes, other.image_bytes),
            _largest(self.ready_s, other.ready_s),
            _largest(self.memory_bytes, other.memory_bytes),
        )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m launcher.figures", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("project", nargs="?", default="synod", help="of Compose")
    parser.add_argument("--base", default=BASE, help="the image whose size is taken from that of ours")
    options = parser.parse_args(arguments)
    try:
        found = measured(options.project, options.base)
    except subprocess.CalledProcessError as error:
        sys.stderr.write(f"error docker: {error.stderr.strip()}\n")
        return 1
    if not found:
        sys.stderr.write(f"error no container of the project {options.project} runs; start it by make compose-up\n")
        return 1
    sys.stdout.write(table(found))
    return 0


def measured(project: str, base: str = BASE) -> dict[str, Figures]:
    """The figures of each service that runs now. Raises CalledProcessError if the engine refuses."""
    ids = _docker("ps", "--quiet", "--no-trunc", "--filter", f"label=com.docker.compose.project={project}").split()
    if not ids:
        return {}
    used = _memory_bytes(ids)
    found: dict[str, Figures] = {}
    for container in json.loads(_docker("inspect", *ids)):
        name, began = container["Config"]["Labels"]["com.docker.compose.service"], container["State"]["StartedAt"]
        log = _docker("logs", "--timestamps", "--since", began, container["Id"])
        image_bytes = _image_bytes(container["Config"]["Image"], base)
        figures = Figures(image_bytes, ready_after_s(began, log.splitlines()), used.get(container["Id"]))
        found[name] = found[name].largest(figures) if name in found else figures
    return found


def ready_after_s(began: str, log: Iterable[str]) -> float | None:
    """From the start of the container to the last line by which its program says that it serves, each led by its time."""
    times = [time for time, _, line in (each.partition(" ") for each in log) if READY.search(line)]
    return (_time(times[-1]) - _time(began)).total_seconds() if times else None


def bytes_of(usage: str) -> int:
    """Of `73.89MiB / 512MiB`, as the engine prints what is used and what may be."""
    found = re.match(r"([\d.]+)([A-Za-z]+)", usage)
    if found is None or found[2] not in BYTES:
        raise ValueError(f"no size: {usage}")
    return round(float(found[1]) * BYTES[found[2]])


def table(found: Mapping[str, Figures]) -> str:
    """In Markdown, in the order of the services, what is no service after them."""
    rank = {name: place for place, name in enumerate(ORDER)}
    names = sorted(found, key=lambda name: (rank.get(name, len(ORDER)), name))
    rows = [f"| {name} | {_cells(found[name])} |\n" for name in names]
    return "| container | image, MB | serves after, s | memory, MiB |\n|---|---|---|---|\n" + "".join(rows)


def _cells(figures: Figures) -> str:
    image = "" if figures.image_bytes is None else f"{figures.image_bytes / 1e6:,.0f}"
    ready = "" if figures.ready_s is None else f"{figures.ready_s:.1f}"
    memory = "" if figures.memory_bytes is None else f"{figures.memory_bytes / 2**20:,.0f}"
    return f"{image} | {ready} | {memory}"


def _largest(one: Number | None, other: Number | None) -> Number | None:
    return max((each for each in (one, other) if each is not None), default=None)


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def _memory_bytes(ids: Sequence[str]) -> dict[str, int]:
    """Without what the machine only caches for them."""
    lines = _docker("stats", "--no-stream", "--no-trunc", "--format", "{{json .}}", *ids).splitlines()
    return {each["ID"]: bytes_of(each["MemUsage"]) for each in map(json.loads, lines)}


def _image_bytes(image: str, base: str) -> int | None:
    """Of one of ours, what it has above the base."""
    size = _size(image)
    return size - (_size(base) or 0) if size and image.startswith(OURS) else size


def _size(image: str) -> int | None:
    """None if the engine does not have it."""
    try:
        return int(_docker("image", "inspect", "--format", "{{.Size}}", image))
    except subprocess.CalledProcessError:
        return None


def _docker(*arguments: str) -> str:
    command = ("docker", *arguments)
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=ENGINE_S)
    # Programs log to either.
    return done.stdout + (done.stderr if arguments[0] == "logs" else "")


if __name__ == "__main__":
    sys.exit(main())

"""What the processes of a system said to other machines: nothing, if they start and work offline."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter

FOLDER: Final = Path(__file__).parent / "watched"


@dataclass(frozen=True)
class Line:
    """`event` is "watched" as a process begins, then for each attempt that was refused an audit
    event of Python's or a method of uvloop's loop."""

    pid: int
    program: tuple[str, ...]
    event: str
    host: str


_LINE: Final = TypeAdapter(Line)


@dataclass(frozen=True)
class Outbound:
    """Watches the processes that get its `environment`: they have no network, and nothing that earlier ones kept."""

    file: Path
    home: Path

    def environment(self) -> Mapping[str, str]:
        return {"PYTHONPATH": str(FOLDER), "SYNOD_OUTBOUND_FILE": str(self.file), "HOME": str(self.home)}

    def watched(self) -> frozenset[str]:
        """The modules that were run so, such as "llm_gateway"."""
        return frozenset(line.program[1] for line in self._lines() if line.program[:1] == ("-m",))

    def attempts(self) -> list[Line]:
        return [line for line in self._lines() if line.event != "watched"]

    def _lines(self) -> list[Line]:
        text = self.file.read_text() if self.file.exists() else ""
        return [_LINE.validate_json(line) for line in text.splitlines()]

"""Every log that the harness can put to the test."""

from .target import TargetKind
from .target_eventlog import EVENTLOG

TARGETS: dict[str, TargetKind] = {kind.name: kind for kind in (EVENTLOG,)}

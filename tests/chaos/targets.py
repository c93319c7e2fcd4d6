"""Every log that the harness can put to the test."""

from .target import TargetKind
from .target_dcb import STOCK_DCB
from .target_eventlog import EVENTLOG
from .target_library import EVENTLOG_LIBRARY, STOCK, STOCK_FUNCTIONS

TARGETS: dict[str, TargetKind] = {
    kind.name: kind for kind in (EVENTLOG, EVENTLOG_LIBRARY, STOCK, STOCK_FUNCTIONS, STOCK_DCB)
}

"""Windows of budgets: which one a moment falls into, and what it is called."""

from datetime import datetime

from synod.cost_ledger.events import Window


def window_start(window: Window, at: datetime) -> str:
    """The name of the window that `at` (UTC) falls into."""
    match window:
        case "lifetime":
            return "lifetime"
        case "day":
            return at.strftime("%Y-%m-%d")
        case "month":
            return at.strftime("%Y-%m")

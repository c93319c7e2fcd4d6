"""Behaviours of agents: pure functions from the folded state of a run to what it wants done next.

Adding one is one file here, one line in BEHAVIOURS and one word in synod.common.definitions.
"""

from collections.abc import Callable, Mapping
from typing import Final

from agent_runtime.behaviours import chat, react
from agent_runtime.directives import Directive
from agent_runtime.domain import RunState

Behaviour = Callable[[RunState], tuple[Directive, ...]]

BEHAVIOURS: Final[Mapping[str, Behaviour]] = {"chat": chat.next_directives, "react": react.next_directives}

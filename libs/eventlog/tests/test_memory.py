"""The log in memory keeps the contract."""

import pytest
from eventlog.errors import LogClosed
from eventlog.memory import MemoryEventLog
from eventlog.testing import EventLogContract


class TestMemoryEventLog(EventLogContract):
    @pytest.fixture
    def log(self) -> MemoryEventLog:
        return MemoryEventLog()


async def test_a_closed_log_refuses() -> None:
    log = MemoryEventLog()
    await log.close()
    with pytest.raises(LogClosed):
        await log.head()

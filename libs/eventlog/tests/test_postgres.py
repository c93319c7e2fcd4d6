"""The log in PostgreSQL keeps the contract, and what only a database can break."""

from collections.abc import AsyncIterator

import pytest
from eventlog.postgres import PostgresEventLog
from eventlog.testing import EventLogContract


class TestPostgresEventLog(EventLogContract):
    @pytest.fixture
    async def log(self, postgres_dsn: str) -> AsyncIterator[PostgresEventLog]:
        async with await PostgresEventLog.open(postgres_dsn) as log:
            yield log

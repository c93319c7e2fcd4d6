"""A TCP proxy before PostgreSQL that can lose the answer to a COMMIT, lose all that a client says, or speak for the server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from psycopg.conninfo import conninfo_to_dict, make_conninfo

_COMMITTED = (b"COMMIT\x00", b"INSERT 0 ")  # the tags of CommandComplete: a transaction's, or a lone statement's


class LossyProxy:
    """Forwards every byte, until told to lose."""

    def __init__(self, dsn: str) -> None:
        self._target = conninfo_to_dict(dsn)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.lose_commits = 0
        self.garble: bytes | None = None
        """Said instead of what the server says next."""
        self.withhold: bytes | None = None
        """A connection whose client says this is lost from there on: the server is given no more of it."""
        self.withheld = asyncio.Event()
        """Whether it was not given something since this was last cleared."""

    @property
    def dsn(self) -> str:
        """The database's address through this proxy."""
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        return make_conninfo("", **{**self._target, "host": "127.0.0.1", "port": port, "sslmode": "disable"})

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def stop(self) -> None:
        """Refuse new connections and drop the present ones."""
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            server, to_server = await asyncio.open_connection(self._target["host"], self._target["port"])
        except OSError:
            to_client.close()  # as refused as the database's own port
            self._tasks.discard(task)
            return
        upward = asyncio.create_task(self._pump_up(client, to_server))
        upward.add_done_callback(lambda _: to_server.close())  # the server learns at once that its client is gone
        try:
            await self._pump_down(server, to_client)
        except asyncio.CancelledError:
            pass  # the proxy stops; asyncio's server would log the cancellation as an error
        finally:
            upward.cancel()
            to_client.close()
            to_server.close()
            self._tasks.discard(task)

    async def _pump_up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        losing = False
        while data := await reader.read(65_536):
            losing = losing or (self.withhold is not None and self.withhold in data)
            if losing:
                self.withheld.set()
            else:
                writer.write(data)
                await writer.drain()

    async def _pump_down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            if self.lose_commits and any(tag in data for tag in _COMMITTED):
                self.lose_commits -= 1
                return
            garbled, self.garble = self.garble, None
            writer.write(data if garbled is None else garbled)
            await writer.drain()


@asynccontextmanager
async def lossy_proxy(dsn: str) -> AsyncIterator[LossyProxy]:
    proxy = LossyProxy(dsn)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()

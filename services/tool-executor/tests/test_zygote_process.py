"""The executor's end of a zygote that is slow to read its orders."""

import asyncio
import socket
from pathlib import Path

from tool_executor.sandboxes.wire import MESSAGE_BYTES_MAX, Kill, decode
from tool_executor.sandboxes.zygote_process import Profile, ZygoteProcess


async def test_a_kill_that_finds_no_room_is_sent_when_there_is_some(tmp_path: Path) -> None:
    zygote, (ours, theirs) = ZygoteProcess(Profile("plain"), tmp_path), socket.socketpair(type=socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.setblocking(False)
        theirs.settimeout(10)
        zygote._control = ours
        zygote._calls = {name: asyncio.get_running_loop().create_future() for name in ("first", "late")}
        sent = 0
        while not zygote._late:
            zygote.kill("first")
            sent += 1
        zygote.kill("late")

        told = [decode(await asyncio.to_thread(theirs.recv, MESSAGE_BYTES_MAX)) for _ in range(sent + 1)]

        assert told == [Kill("first")] * sent + [Kill("late")]
        async with asyncio.timeout(10):
            await asyncio.gather(*zygote._late)

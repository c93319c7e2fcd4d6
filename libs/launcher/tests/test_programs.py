"""How a program is asked whether it is ready."""

import asyncio

from launcher.programs import ask_ready


async def test_an_answer_that_comes_in_pieces_is_heard_to_its_end() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for piece in (b"HTTP/1.1 5", b"03 Service Unavailable\r\n\r\n", b"waiting for ", b"a peer"):
            writer.write(piece)
            for _ in range(100):  # until the other side has read it
                await asyncio.sleep(0)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        answered = await ask_ready(server.sockets[0].getsockname()[1])
    assert (answered.is_ready, answered.said) == (False, "waiting for a peer")

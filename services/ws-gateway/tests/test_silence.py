"""Who does not say who it is, is not listened to for long."""

import edge_fakes as fakes
from edge_world import LIMITS, Client, running
from launcher.testing import RunningNats
from websockets.asyncio.client import connect

IMPATIENT = LIMITS.model_copy(update={"auth_wait_s": 0.2})


async def test_silence_is_closed_with_4401_and_a_token_in_the_query_is_silence(
    postgres_dsn: str, fresh_nats: RunningNats
) -> None:
    async with running(postgres_dsn, fresh_nats.url, IMPATIENT) as system:
        async with system.client(token=None) as client:
            assert (await client.closed())[0] == 4401
        async with connect(f"{system.url.replace('http', 'ws')}/ws?token={fakes.API_KEY}") as socket:
            assert (await Client(socket).closed())[0] == 4401

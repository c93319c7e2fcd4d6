"""What stands in the clear in the files of PostgreSQL and of NATS."""

import asyncio
from contextlib import aclosing

from synod_client import Synod

from .conftest import Containers
from .definitions import WAIT_S

SAID = "The password of the vault is xyzzy."
KEEPER = f"""
apiVersion: synod/v1
kind: Agent
metadata: {{name: keeper}}
spec: {{behaviour: chat, model: {{name: simulator/sim-1}}, instructions: {SAID}}}
"""
IN_STREAMS = 'grep -rlF "$0" /data || true'
IN_LOG = (
    "PGPASSWORD=$(cat /run/secrets/postgres.password) exec psql --host=/var/run/postgresql --username=postgres "
    "--dbname=agent_registry --tuples-only --no-align --command="
    "\"select 1 from eventlog.events where position(convert_to('$0', 'UTF8') in data) > 0\""
)


async def where_it_is_readable(containers: Containers) -> set[str]:
    """Has something said, waits until it is in the log and its stream, and looks at the bytes of both."""
    async with Synod.connect(containers.endpoints) as synod:
        await synod.define(KEEPER)
        async with asyncio.timeout(WAIT_S), aclosing(synod.follow("agent-registry")) as events:
            async for event in events:
                if SAID.encode() in event.data:
                    break
    found = {
        "log": await asyncio.to_thread(containers.run, "postgres", "sh", "-c", IN_LOG, SAID),
        "streams": await asyncio.to_thread(containers.run, "nats", "sh", "-c", IN_STREAMS, SAID),
    }
    return {place for place, printed in found.items() if printed.strip()}

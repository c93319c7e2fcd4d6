"""The composition root of consensus."""

from functools import partial

from eventlog.codec import Codec
from servicekit.app import run
from servicekit.clock import Clock
from servicekit.host import Host
from synod.consensus.events import EVENTS
from synod.consensus.v1.consensus_pb2_grpc import add_ConsensusServicer_to_server

from consensus.application import Consensus
from consensus.deadlines import Deadlines
from consensus.projections import ProposalsView, Queries, VariablesView
from consensus.rpc import PERMISSIONS, ConsensusRpc
from consensus.settings import Settings
from consensus.telemetry import Telemetry
from consensus.translate import ERRORS


async def compose(host: Host[Settings]) -> None:
    log = await host.open_log()
    consensus = Consensus(log, Codec(EVENTS), host.clock)
    queries = Queries(host.pool)
    host.add_view(ProposalsView())
    host.add_view(VariablesView())
    host.add_rpc(add_ConsensusServicer_to_server, ConsensusRpc(consensus, queries, host.clock), PERMISSIONS, ERRORS)
    host.add_measurement(partial(_measure, queries, Telemetry(host.metrics.registry), host.clock))
    host.add_task("changes", consensus.changes.follow)
    host.add_task("deadlines", Deadlines(consensus, queries, host.clock).run)


async def _measure(queries: Queries, telemetry: Telemetry, clock: Clock) -> None:
    now = clock.now()
    telemetry.waiting(await queries.open_proposals(now), now)


def main() -> int:
    return run(Settings, compose)

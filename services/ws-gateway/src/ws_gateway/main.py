"""The composition root of ws-gateway."""

from eventlog.codec import Codec
from httpedge.callers import Callers
from httpedge.certificate import EdgeCertificate
from httpedge.registry import RegistryKeys
from servicekit.app import run
from servicekit.auth import Authenticator, load_public_key
from servicekit.host import Host
from synod.ws_gateway.events import EVENTS
from synod.ws_gateway.v1.ws_gateway_pb2_grpc import add_WsGatewayServicer_to_server

from ws_gateway.application import Sessions
from ws_gateway.clients import Services
from ws_gateway.dialogue import Backstage
from ws_gateway.edge import edge_of
from ws_gateway.monitoring import Monitoring
from ws_gateway.projections import Queries, SessionsView
from ws_gateway.rpc import PERMISSIONS, WsGatewayRpc
from ws_gateway.sessions import Meters, Register
from ws_gateway.settings import Settings
from ws_gateway.subscriptions import Feeds, HistoryLimit
from ws_gateway.translate import ERRORS


async def compose(host: Host[Settings]) -> None:
    settings, limits = host.settings, host.settings.edge
    log = await host.open_log()
    meters = Meters(host.metrics.registry)
    register = Register(Sessions(log, Codec(EVENTS), host.clock), meters, limits.connections_max)
    services = Services(host, log)
    authenticator = Authenticator(
        load_public_key(settings.auth_public_key_file), host.clock, cache_max=settings.limits.tokens_cached_max
    )
    history_limit = HistoryLimit(limits.recovery_events_max, limits.recovery_bytes_max)
    feeds = Feeds(host.nats, host.log_, limits.recovery_positions_max, history_limit)
    back = Backstage(
        callers=Callers(authenticator, RegistryKeys(services.registry), host.clock, limits.keys_cached_max),
        services=services,
        feeds=feeds,
        monitoring=Monitoring(host.nats, register, host.health, host.clock, host.clock.monotonic()),
        register=register,
        limits=limits,
        tracing=host.tracing,
        log_=host.log_,
        clock=host.clock,
    )
    certificate = EdgeCertificate.named(settings.edge_tls_certificate_file, settings.edge_tls_key_file)
    edge = edge_of(back, settings, meters, certificate)
    host.add_view(SessionsView())
    host.add_rpc(add_WsGatewayServicer_to_server, WsGatewayRpc(register, Queries(host.pool)), PERMISSIONS, ERRORS)
    host.add_task("edge", edge.run)
    if certificate:
        host.add_task("edge certificate", certificate.follow(host.health, host.log_))
    host.on_stop(feeds.close)
    host.on_stop(edge.close)
    host.log_.info("edge", address=edge.url)


def main() -> int:
    return run(Settings, compose)

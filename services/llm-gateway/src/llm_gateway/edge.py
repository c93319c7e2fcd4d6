"""The APIs of OpenAI and Anthropic at llm-gateway itself: a call that comes here goes through no other service.

ws-gateway serves the same by gRPC, beside all else that is public. This is the short way, at half the price.
"""

from dataclasses import dataclass
from typing import Final

import orjson
from httpedge import http
from httpedge.callers import Callers, KeyExchange
from httpedge.certificate import EdgeCertificate
from httpedge.compatible.endpoints import Compatible, CompatibleLimits, Stage
from httpedge.http import Straight
from httpedge.meters import answers_counter
from httpedge.model_calls import ModelCalls
from httpedge.server import EdgeServer
from servicekit.auth import Authenticator, load_public_key
from servicekit.health import Health
from servicekit.host import Host

from llm_gateway.settings import Settings

READY: Final = "/ready"
_JSON: Final = http.lines({"content-type": "application/json", "cache-control": "no-store"})


def add_edge(host: Host[Settings], models: ModelCalls, keys: KeyExchange) -> None:
    """Serve the edge as a task of the host. Raises PortTaken, TlsInvalid."""
    settings = host.settings
    certificate = EdgeCertificate.named(settings.edge_tls_certificate_file, settings.edge_tls_key_file)
    edge = EdgeServer(
        settings.edge_host,
        settings.edge_port,
        Straight("", Answering(compatible(host, models, keys), host.health)),
        settings.shutdown_grace_s / 2,
        certificate,
    )
    host.add_task("edge", edge.run)
    host.on_leave(edge.leave)
    if certificate:
        host.add_task("edge certificate", certificate.follow(host.health, host.log_))
    host.on_stop(edge.close)
    host.log_.info("edge", address=edge.url)


def compatible(host: Host[Settings], models: ModelCalls, keys: KeyExchange) -> Compatible:
    settings, limits = host.settings, host.settings.edge
    authenticator = Authenticator(
        load_public_key(settings.auth_public_key_file), host.clock, cache_max=settings.limits.tokens_cached_max
    )
    return Compatible(
        Stage(
            service=settings.service,
            callers=Callers(authenticator, keys, host.clock, limits.keys_cached_max),
            models=models,
            limits=CompatibleLimits(limits.body_bytes_max, limits.call_s),
            health=host.health,
            tracing=host.tracing,
            log=host.log_,
            clock=host.clock,
            requests=answers_counter(host.metrics.registry),
        )
    )


@dataclass(frozen=True, slots=True)
class Answering:
    """All that the edge answers: the APIs, and a balancer that asks whether to send requests here."""

    compatible: Compatible
    health: Health

    async def __call__(self, wire: http.Exchange) -> None:
        if (wire.method, wire.path) != ("GET", READY):
            await self.compatible(wire)
            return
        status = 200 if self.health.ready else 503
        await wire.whole(status, _JSON, orjson.dumps({"status": self.health.status}))

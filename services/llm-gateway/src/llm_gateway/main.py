"""The composition root of llm-gateway."""

import asyncio
import re
from dataclasses import replace
from functools import partial
from typing import Final

from eventlog.codec import Codec
from eventlog.folding import ProjectorLimits
from eventlog.log import EventLog
from eventlog.master_keys import FileMasterKey
from httpedge.registry import RegistryKeys
from pydantic import SecretStr
from servicekit.app import run
from servicekit.host import Host
from synod.agent_registry.v1.agent_registry_pb2_grpc import AgentRegistryStub
from synod.common.ids import new_id
from synod.cost_ledger.v1.cost_ledger_pb2_grpc import CostLedgerStub
from synod.llm_gateway.events import EVENTS
from synod.llm_gateway.v1.llm_gateway_pb2_grpc import add_LlmGatewayServicer_to_server

from llm_gateway.admission import Admission
from llm_gateway.answer_cache import AnswerCache, CacheTerms
from llm_gateway.application import Gateway
from llm_gateway.cache_store import PostgresCacheStore
from llm_gateway.catalogue import (
    ANY_MODEL,
    Catalogue,
    KnownModel,
    ProviderEntry,
    hosted_embeddings,
    hosted_models,
)
from llm_gateway.circuits import Circuits, CircuitTerms, Phase
from llm_gateway.clients import GrpcLedger
from llm_gateway.clouds import cloud_entries
from llm_gateway.deployments import observed, with_roster
from llm_gateway.edge import add_edge
from llm_gateway.execution import Terms, Tools
from llm_gateway.headroom import Headroom
from llm_gateway.journal import Journal
from llm_gateway.limits import Line
from llm_gateway.ports import Ledger, Workers
from llm_gateway.projections import Queries, ReservationsView
from llm_gateway.providers import catalog
from llm_gateway.providers.catalog import Now
from llm_gateway.providers.provider import Embedder, Provider
from llm_gateway.providers.quota import Quota
from llm_gateway.providers.transport import Transport, open_session
from llm_gateway.renewals import Renewals
from llm_gateway.results import ANSWERS, PostgresResults
from llm_gateway.retrying import RetryBudget, RetryTerms
from llm_gateway.roster import LoadedRoster, RosterFile
from llm_gateway.rpc import PERMISSIONS, Handlers, LlmGatewayRpc, OwnModelCalls
from llm_gateway.settings import Settings
from llm_gateway.shared_limits import PostgresBooks, SharedLimits
from llm_gateway.similar import LikenessIndex, SimilarAnswers, SimilarTerms
from llm_gateway.slices import SliceTerms
from llm_gateway.stock import Stock
from llm_gateway.stock_journal import StockJournal
from llm_gateway.stock_keeping import StockKeeper
from llm_gateway.surroundings import Surroundings
from llm_gateway.telemetry import Telemetry
from llm_gateway.translate import ERRORS, AnswerRecords
from llm_gateway.workers import PostgresWorkers

SIMULATOR_MODELS: Final = re.compile(r"sim-(1|[45]\d\d|slow|cut|error-event|no-usage|no-end|html)")
"""The simulator's model, and those that fail on demand."""
RELAY_PACE_S: Final = 0.05
"""Of its events: settlements follow them, for which nobody waits; the caller of a model waits for what relaying takes."""
VIEW_PACE_S: Final = 0.25
"""Of the view of attempts: what was left behind is looked for in it every few seconds, and most attempts begin and end within
a batch, which then costs next to nothing."""


async def compose(host: Host[Settings]) -> None:
    settings = host.settings
    results, cached = await answer_stores(host)
    log = await host.open_log(relay_pace_s=RELAY_PACE_S, side_table=ANSWERS)
    workers = PostgresWorkers(settings.postgres_dsn.get_secret_value(), host.pool, new_id("gw"))
    await workers.enter()
    host.on_stop(workers.leave)
    transport = Transport(await host.stack.enter_async_context(open_session(proxies=settings.proxies)))
    entries = await all_entries(host, transport)
    roster = roster_file(settings)
    loaded = await roster.changed() if roster else None

    surroundings = Surroundings(log, Codec(EVENTS), host.clock, workers.own)
    headroom = Headroom()

    def limits_told(circuit: str, told: tuple[Quota, ...]) -> None:
        for adjusted in headroom.observe(circuit, told, asyncio.get_running_loop().time()):
            surroundings.limit_adjusted(adjusted)

    def circuit_changed(circuit: str, phase: Phase, open_s: float) -> None:
        telemetry.circuit_changed(circuit, phase)
        surroundings.circuit_changed(circuit, phase, open_s)

    def catalogue_of(loaded: LoadedRoster) -> Catalogue:
        known = observed(with_roster(entries, loaded, transport, host.clock.now), limits_told)
        aliases = {**settings.model_aliases, **loaded.roster.aliases}
        return Catalogue(known, aliases, lambda: host.clock.now().date())

    catalogue = catalogue_of(loaded or LoadedRoster())
    listed = frozenset(card.id for card in catalogue.cards())
    telemetry = Telemetry(host.tracer, host.metrics.registry, host.log_, listed)
    ledger = GrpcLedger(CostLedgerStub(host.channel("cost-ledger")), settings.ledger_timeout_s)
    now = asyncio.get_running_loop().time
    renewals = Renewals(ledger, settings.reservation_ttl_s, now, refused=telemetry.not_renewed)
    tools = Tools(
        ledger=ledger,
        journal=Journal(log, Codec(EVENTS), host.clock),
        results=results,
        workers=workers,
        codec=AnswerRecords(),
        clock=host.clock,
        telemetry=telemetry,
        retry_budget=RetryBudget(),
        admission=await shared_admission(host, workers.own, telemetry),
        circuits=Circuits(circuit_terms(settings), circuit_changed),
        terms=terms(settings),
        renewals=renewals,
        stock=reservation_stock(host, log, workers, ledger, telemetry),
        headroom=headroom,
        cache=AnswerCache(cached, host.clock, cache_terms(settings)),
        similar=similar_answers(settings, telemetry),
        balancing=settings.balancing,
    )
    gateway = Gateway(catalogue, tools)

    async def end_orphans() -> None:
        while True:
            await gateway.end_orphans(await Queries(host.pool).running())
            await asyncio.sleep(settings.orphans_s)

    async def follow_roster() -> None:
        while roster is not None:
            await asyncio.sleep(settings.roster_look_s)
            with telemetry.roster_read():
                if changed := await roster.changed():
                    gateway.use(catalogue_of(changed))

    handlers = Handlers(gateway, host.clock)
    host.add_rpc(add_LlmGatewayServicer_to_server, LlmGatewayRpc(handlers), PERMISSIONS, ERRORS)
    keys = RegistryKeys(AgentRegistryStub(host.channel("agent-registry")))
    add_edge(host, OwnModelCalls(handlers, host.errors.including(ERRORS)), keys)
    host.add_task("orphans", end_orphans)
    host.add_task("worker lock", workers.stay)
    host.add_task("surroundings", surroundings.run)
    host.add_task("reservations", renewals.run)
    if roster is not None:
        host.add_task("roster", follow_roster)
    host.on_stop(gateway.close)


def reservation_stock(host: Host[Settings], log: EventLog, workers: Workers, ledger: Ledger, told: Telemetry) -> Stock:
    """What is reserved ahead, and who closes what others have left. At its end this process closes its own, so the hook that
    ends its calls is to be added later: hooks are called in reverse.
    """
    view = host.add_view(ReservationsView(), limits=ProjectorLimits(pace_s=VIEW_PACE_S))
    journal, ahead_s = StockJournal(log, Codec(EVENTS), host.clock), host.settings.reserve_ahead_s
    stock = Stock(ledger, journal, workers, ahead_s, made=told.reserved_ahead, used=told.used_ahead)
    keeper = StockKeeper(Queries(host.pool), view, workers, journal, host.clock, told.stocks_not_closed)

    async def close() -> None:
        await stock.close()
        # Else others close it, by when the ledger has made what it may yet make.
        if stock.is_certain:
            await keeper.close_own()

    host.add_task("stocks", partial(keeper.run, host.settings.orphans_s))
    host.on_stop(close)
    if ahead_s:
        host.add_task("reservations ahead", stock.run)
    return stock


async def answer_stores(host: Host[Settings]) -> tuple[PostgresResults, PostgresCacheStore]:
    """Answers kept for repeats of their requests, and for others who ask the same."""
    results = PostgresResults(host.pool, host.clock, host.settings.answers_kept_s)
    await results.prepare()
    cached = PostgresCacheStore(host.pool, host.clock, host.settings.cache_entries_max)
    await cached.prepare()
    host.add_task("results", results.purge_forever)
    host.add_task("answer cache", cached.purge_forever)
    return results, cached


async def shared_admission(host: Host[Settings], worker: str, telemetry: Telemetry) -> Admission:
    """Before limits that all processes share."""
    slices = SliceTerms(host.settings.rate_limit_slice_s)
    books = PostgresBooks(host.pool, slices)
    await books.prepare()
    shared = SharedLimits(worker, books, slices)
    line = Line(host.settings.rate_limits, make=shared.meters)
    admission = Admission(line, telemetry.calls_waiting, telemetry.call_waited, shared.wake)
    host.add_task("rate limits", lambda: shared.run(admission))
    host.add_task("rate limit books", books.forget_forever)
    host.on_stop(shared.close)
    return admission


async def all_entries(host: Host[Settings], transport: Transport) -> tuple[ProviderEntry, ...]:
    """Those on this machine's own connections, and those behind the SDKs of clouds."""
    settings, now = host.settings, host.clock.now
    entries = (*provider_entries(settings, transport, now), *await cloud_entries(host.stack, settings, now))
    aborts = settings.abort_policies
    return tuple(replace(entry, abort=aborts.get(entry.name, entry.abort)) for entry in entries)


def roster_file(settings: Settings) -> RosterFile | None:
    if settings.roster_file is None:
        return None
    files = (settings.master_key_file, *settings.former_master_key_files) if settings.master_key_file else ()
    return RosterFile(settings.roster_file, [FileMasterKey(file) for file in files])


def terms(settings: Settings) -> Terms:
    return Terms(
        output_tokens_default=settings.output_tokens_default,
        call_max_s=settings.call_max_s,
        drain_s=settings.drain_s,
        drains_max=settings.drains_max,
        calls_max=settings.calls_max,
        retry=RetryTerms(attempts_max=settings.attempts_max),
    )


def cache_terms(settings: Settings) -> CacheTerms:
    return CacheTerms(
        ttl_s=settings.cache_ttl_s,
        ttl_max_s=settings.cache_ttl_max_s,
        front_bytes_max=settings.cache_front_bytes,
    )


def similar_answers(settings: Settings, telemetry: Telemetry) -> SimilarAnswers | None:
    if not settings.similar_model:
        return None
    terms = SimilarTerms(settings.similar_model, settings.similar_dimensions, settings.similar_likeness_min)
    return SimilarAnswers(terms, telemetry.similar_found, LikenessIndex())


def circuit_terms(settings: Settings) -> CircuitTerms:
    return CircuitTerms(failures_max=settings.circuit_failures_max, open_s=settings.circuit_open_s)


def provider_entries(settings: Settings, transport: Transport, now: Now) -> tuple[ProviderEntry, ...]:
    """Every provider that can be configured, those that are not with what to set."""
    return (
        _simulator(settings, transport, now),
        _openai(settings, transport, now),
        _anthropic(settings, transport, now),
        _google(settings, transport, now),
        _own_server("ollama", "OLLAMA_HOST", ollama_url(settings.ollama_host), None, transport, now),
        _own_server("vllm", "SYNOD_VLLM_URL", settings.vllm_url, settings.vllm_api_key, transport, now),
        _own_server(
            "openai-compatible",
            "SYNOD_OPENAI_COMPATIBLE_URL",
            settings.openai_compatible_url,
            settings.openai_compatible_api_key,
            transport,
            now,
        ),
    )


def _simulator(settings: Settings, transport: Transport, now: Now) -> ProviderEntry:
    provider: Provider | None = None
    embedder: Embedder | None = None
    if settings.simulator_url:
        url = settings.simulator_url.rstrip("/") + "/v1"
        provider = catalog.openai_compatible(
            transport, now, name="simulator", base_url=url, api_key="simulator", profile=catalog.OPENAI
        )
        embedder = catalog.openai_embedder(transport, now, name="simulator", base_url=url, api_key="simulator")
    return ProviderEntry(
        "simulator",
        "openai-chat",
        catalog.OPENAI,
        provider,
        "start the provider simulator and set SYNOD_SIMULATOR_URL",
        (KnownModel("sim-1"),),
        SIMULATOR_MODELS,
        simulated=True,
        embedder=embedder,
        embeds=(KnownModel("sim-embed"),),
    )


def _openai(settings: Settings, transport: Transport, now: Now) -> ProviderEntry:
    responses = settings.openai_dialect == "responses"
    made, profile = (
        (catalog.openai_responses, catalog.OPENAI_RESPONSES) if responses else (catalog.openai, catalog.OPENAI)
    )
    provider: Provider | None = None
    embedder: Embedder | None = None
    if key := _secret(settings.openai_api_key):
        provider = made(transport, now, key, settings.openai_base_url)
        url = settings.openai_base_url
        embedder = catalog.openai_embedder(transport, now, name="openai", base_url=url, api_key=key)
    return ProviderEntry(
        "openai",
        f"openai-{settings.openai_dialect}",
        profile,
        provider,
        "set OPENAI_API_KEY",
        hosted_models("openai", now().date()),
        profiles=catalog.KINDS["openai-responses" if responses else "openai-chat"].families,
        embedder=embedder,
        embeds=hosted_embeddings("openai"),
    )


def _anthropic(settings: Settings, transport: Transport, now: Now) -> ProviderEntry:
    provider: Provider | None = None
    if key := _secret(settings.anthropic_api_key):
        provider = catalog.anthropic(transport, now, key, settings.anthropic_base_url)
    return ProviderEntry(
        "anthropic",
        "anthropic-messages",
        catalog.ANTHROPIC,
        provider,
        "set ANTHROPIC_API_KEY",
        hosted_models("anthropic", now().date()),
        profiles=catalog.ANTHROPIC_FAMILIES,
    )


def _google(settings: Settings, transport: Transport, now: Now) -> ProviderEntry:
    provider: Provider | None = None
    embedder: Embedder | None = None
    if key := _secret(settings.gemini_api_key):
        provider = catalog.google(transport, now, key, settings.gemini_base_url)
        embedder = catalog.google_embedder(transport, now, key, settings.gemini_base_url)
    return ProviderEntry(
        "google",
        "gemini-generate",
        catalog.GEMINI,
        provider,
        "set GEMINI_API_KEY",
        hosted_models("google", now().date()),
        profiles=catalog.GEMINI_FAMILIES,
        embedder=embedder,
        embeds=hosted_embeddings("google"),
    )


def _own_server(
    name: str, variable: str, url: str, key: SecretStr | None, transport: Transport, now: Now
) -> ProviderEntry:
    """A server that runs whatever its owner loaded: any name of a model is passed on."""
    profile = catalog.VLLM if name == "vllm" else catalog.OPENAI_COMPATIBLE
    provider: Provider | None = None
    embedder: Embedder | None = None
    if url:
        provider = catalog.openai_compatible(
            transport, now, name=name, base_url=url, api_key=_secret(key), profile=profile
        )
        embedder = catalog.openai_embedder(transport, now, name=name, base_url=url, api_key=_secret(key))
    remedy = f"set {variable}"
    return ProviderEntry(name, "openai-compatible", profile, provider, remedy, accepts=ANY_MODEL, embedder=embedder)


def ollama_url(host: str) -> str:
    """OLLAMA_HOST as Ollama itself reads it: a host with or without scheme and port."""
    if not host:
        return ""
    origin = host.rstrip("/") if "://" in host else f"http://{host}"
    scheme, _, place = origin.partition("://")
    return f"{scheme}://{place}/v1" if ":" in place else f"{scheme}://{place}:11434/v1"


def _secret(value: SecretStr | None) -> str:
    return value.get_secret_value() if value else ""


def main() -> int:
    return run(Settings, compose)

"""LiteLLM's proxy beside our gateway, from an environment of its own (`make bench-peers`): one process, no retries.

It runs in two ways. Bare it forwards. With budgets and metrics each model has a price and a budget, the cost of every
answer is booked in memory, a model whose budget is spent is refused, and Prometheus metrics are kept.

Nothing is reserved before a call and nothing is durable in either: LiteLLM 1.106 settles what it reserves of a virtual
key's budget only where it has a database, and it has none here, because its database client, Prisma, downloads engines
that neither its PyPI nor its npm packages contain.
"""

import asyncio
import json
import os
import secrets
import sys
import tempfile
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from harness import peer
from launcher.processes import free_port

BARE = "LiteLLM"
BUDGETED = "LiteLLM with budgets and metrics"
READY_S = 120
# The proxy closes a connection that was idle for 5 s, perhaps while a request is on its way.
IDLE_S = 2
MODEL = "sim-1"
SPENT_MODEL = "spent"
PRICE = {"input_cost_per_token": 1e-7, "output_cost_per_token": 4e-7}
"""USD, as simulator/sim-1 has it with us."""
RICH_USD = 1e6
# A budget of 0 is none to LiteLLM.
SPENT_USD = 1e-9
QUIET = {"LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}

Config = Mapping[str, object]


@dataclass(frozen=True)
class Proxy:
    """The proxy's process, and a session that has its key."""

    process: Process
    session: aiohttp.ClientSession


@asynccontextmanager
async def litellm_proxies(origin: str) -> AsyncIterator[Mapping[str, Proxy]]:
    """Both ways before the provider at `origin`, by name; none where LiteLLM is not installed.

    That the second way refuses what is over budget and keeps metrics has been seen before it is handed out.
    """
    program = peer("litellm", "litellm")
    if program is None:
        yield {}
        return
    async with AsyncExitStack() as stack:
        configs = {BARE: bare(origin), BUDGETED: budgeted(origin)}
        proxies = {name: await stack.enter_async_context(started(program, config)) for name, config in configs.items()}
        async with asyncio.timeout(READY_S):
            up = {name: proxy for name, proxy in proxies.items() if await answering(name, proxy)}
            if BUDGETED in up:
                await refusing(up[BUDGETED].session)
                await metering(up[BUDGETED].session)
        yield up


def bare(origin: str) -> Config:
    return config({MODEL: upstream(origin)})


def budgeted(origin: str) -> Config:
    models = {
        name: upstream(origin) | PRICE | {"max_budget": usd, "budget_duration": "1d"}
        for name, usd in ((MODEL, RICH_USD), (SPENT_MODEL, SPENT_USD))
    }
    return config(models, "prometheus")


def upstream(origin: str) -> dict[str, object]:
    return {"model": f"openai/{MODEL}", "api_base": f"{origin}/v1", "api_key": "any"}


def config(models: Mapping[str, Config], *callbacks: str) -> Config:
    return {
        "model_list": [{"model_name": name, "litellm_params": parameters} for name, parameters in models.items()],
        "litellm_settings": {"num_retries": 0, "request_timeout": 30, "callbacks": callbacks},
    }


@asynccontextmanager
async def started(program: Path, config: Config) -> AsyncIterator[Proxy]:
    port, key = free_port(), f"sk-{secrets.token_hex(16)}"
    headers = {"Authorization": f"Bearer {key}"}
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        json.dump(config, file)  # JSON is YAML
        file.flush()
        process = await asyncio.create_subprocess_exec(
            program,
            *("--config", file.name, "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"),
            env=os.environ | QUIET | {"LITELLM_MASTER_KEY": key},
            stdout=DEVNULL,
            stderr=DEVNULL,
        )
        try:
            async with aiohttp.ClientSession(
                f"http://127.0.0.1:{port}",
                headers=headers,
                connector=aiohttp.TCPConnector(keepalive_timeout=IDLE_S),
            ) as session:
                yield Proxy(process, session)
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def answering(name: str, proxy: Proxy) -> bool:
    """Whether the proxy answers, once it does. It ends by itself where a package is missing, and is left out then."""
    while proxy.process.returncode is None:
        try:
            async with proxy.session.get("/health/liveliness") as answer:
                if answer.status == 200:
                    return True
        except aiohttp.ClientError:
            await asyncio.sleep(0.2)
    print(
        f"{name} is left out, it ended with {proxy.process.returncode}: make bench-peers installs all that it needs",
        file=sys.stderr,
    )
    return False


async def refusing(session: aiohttp.ClientSession) -> None:
    """Returns when the spent budget refuses: LiteLLM books a call after its answer, so not yet the first one."""
    body = {"model": SPENT_MODEL, "messages": [{"role": "user", "content": "go"}]}
    while True:
        async with session.post("/v1/chat/completions", json=body) as answer:
            if answer.status != 200:
                assert answer.status == 429, await answer.text()
                assert "crossed budget" in await answer.text()
                return


async def metering(session: aiohttp.ClientSession) -> None:
    """Returns when what was spent stands in the metrics, which are written after the answer too."""
    while True:
        async with session.get("/metrics/") as answer:
            assert answer.status == 200, await answer.text()
            if "\nlitellm_spend_metric_total{" in await answer.text():
                return

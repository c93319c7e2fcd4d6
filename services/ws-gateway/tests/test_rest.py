"""REST as its clients see it: resources, idempotency, streams, and refusals that say what to do."""

import base64
import io
import json
from datetime import timedelta

import edge_fakes as fakes
import pytest
from edge_world import System
from servicekit.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    ServiceError,
    Unavailable,
)
from synod.agent_registry.v1 import agent_registry_pb2 as registry_pb

pytestmark = pytest.mark.asyncio(loop_scope="module")

JSON = {"Content-Type": "application/json"}
AGENT = registry_pb.Agent(
    id="agt_1",
    name="analyst",
    definition_name="analyst",
    definition_version=1,
    state="AGENT_STATE_IDLE",
    capabilities=["sql"],
)


def order(**more: object) -> dict[str, object]:
    return {"definition": "x", "input": "y", **more}


async def get(system: System, path: str, **options: object) -> dict[str, object]:
    async with system.http.get(f"/api/v1{path}", **options) as answer:  # type: ignore[arg-type]
        body = await answer.json(content_type=None)
        assert answer.status == 200, body
        return body


async def test_agents_are_listed_in_the_callers_name(system: System) -> None:
    system.fake.agents = [AGENT]
    body = await get(system, "/agents")
    assert body["data"][0]["name"] == "analyst"
    assert body["data"][0]["state"] == "idle"
    assert body["next_cursor"] is None
    (asked,) = system.fake.requests("ListAgents")
    token = asked.authorization.removeprefix("Bearer ")
    assert system.served.host.peers is not None
    assert token.count(".") == 2
    assert "svc-ws-gateway" not in _claims(token)
    assert "usr_key" in _claims(token)


async def test_key_is_exchanged_once(system: System) -> None:
    await get(system, "/agents")
    system.fake.reset()
    for _ in range(3):
        await get(system, "/agents")
    assert not system.fake.requests("Authenticate")


async def test_token_is_taken_as_it_is(system: System) -> None:
    headers = {"Authorization": f"Bearer {system.fake.token_for('usr_ada')}"}
    await get(system, "/agents", headers=headers)
    assert not system.fake.requests("Authenticate")
    assert "usr_ada" in _claims(system.fake.requests("ListAgents")[0].authorization)


async def test_key_in_its_own_header_is_read(system: System) -> None:
    async with system.http.get("/api/v1/agents", headers={"X-API-Key": fakes.API_KEY, "Authorization": ""}) as answer:
        assert answer.status == 200


async def test_run_starts_once_for_one_idempotency_key(system: System) -> None:
    body = {"definition": "model-scout", "input": "which?", "budget_nano_usd": 5_000_000, "tags": {"team": "search"}}
    async with system.http.post("/api/v1/runs", json=body, headers={"Idempotency-Key": "k1"}) as answer:
        assert answer.status == 201
        started = (await answer.json())["data"]
    assert (started["id"], started["state"]) == (fakes.RUN_ID, "queued")
    (asked,) = system.fake.requests("StartRun")
    assert (asked.request.request_id, asked.request.budget_nano_usd) == ("k1", 5_000_000)
    assert dict(asked.request.tags) == {"team": "search"}


async def test_run_updates_stream_and_resume_after_the_last_id(system: System) -> None:
    system.fake.updates = [fakes.update(3, "RunStarted"), fakes.token(1, "Hel"), fakes.update(7, "RunCompleted")]
    async with system.http.get(f"/api/v1/runs/{fakes.RUN_ID}/updates") as answer:
        text = await answer.text()
    assert answer.content_type == "text/event-stream"
    assert [line for line in text.splitlines() if line.startswith(("id:", "event:"))] == [
        "id: 3", "event: update", "event: token", "id: 7", "event: update", "event: end",
    ]  # fmt: skip
    async with system.http.get(f"/api/v1/runs/{fakes.RUN_ID}/updates", headers={"Last-Event-ID": "3"}) as answer:
        resumed = await answer.text()
    assert "id: 3" not in resumed
    assert "id: 7" in resumed
    assert system.fake.requests("WatchRun")[-1].request.after_cursor == 3


async def test_message_is_answered_whole_or_as_it_is_produced(system: System) -> None:
    system.fake.updates = [fakes.token(1, "Hello "), fakes.token(1, "no", "run_child"), fakes.token(2, "world")]
    path = f"/api/v1/conversations/{fakes.CONVERSATION_ID}/messages"
    async with system.http.post(path, json={"text": "hi"}) as answer:
        assert (await answer.json())["data"]["text"] == "Hello world"
    async with system.http.post(path, json={"text": "hi"}, headers={"Accept": "text/event-stream"}) as answer:
        text = await answer.text()
    assert [line for line in text.splitlines() if line.startswith("event:")] == [
        "event: start", "event: token", "event: token", "event: end",
    ]  # fmt: skip


async def test_failed_turn_is_a_problem_with_the_reason_of_the_run(system: System) -> None:
    system.fake.run = fakes.a_run("FAILED", failure={"reason": "STEP_LIMIT", "message": "after 16 turns"})
    path = f"/api/v1/conversations/{fakes.CONVERSATION_ID}/messages"
    async with system.http.post(path, json={"text": "hi"}) as answer:
        problem = await answer.json(content_type=None)
    assert (answer.status, problem["reason"], problem["detail"]) == (409, "STEP_LIMIT", "after 16 turns")


async def test_events_are_read_by_position(system: System) -> None:
    first = await system.append(number=0)
    for number in (1, 2):
        await system.append(number=number)
    body = await get(system, "/events/agent-runtime", params={"cursor": str(first - 1), "limit": "2", "run": "run_1"})
    assert [event["position"] for event in body["data"]] == [first, first + 1]
    assert body["data"][1]["data"] == {"number": 1}
    rest = await get(system, "/events/agent-runtime", params={"cursor": body["next_cursor"]})
    assert [event["position"] for event in rest["data"]] == [first + 2]
    assert rest["next_cursor"] is None


async def test_own_log_is_read_like_every_other(system: System) -> None:
    async with system.client():
        body = await get(system, "/events/ws-gateway", params={"type": "SessionOpened"})
    assert {event["type"] for event in body["data"]} == {"SessionOpened"}


@pytest.mark.parametrize(
    "path",
    ["/definitions", "/definitions/model-scout", "/runs", f"/runs/{fakes.RUN_ID}", "/spend?group_by=agent", "/budgets",
     "/models", "/tools", "/proposals?state=decided", "/proposals/prp_1", "/conversations/cnv_1", "/views", "/system/metrics"],
)  # fmt: skip
async def test_every_resource_has_one_form(system: System, path: str) -> None:
    body = await get(system, path)
    assert set(body) in ({"data"}, {"data", "next_cursor"})


async def test_spend_is_asked_and_told_in_nano_usd(system: System) -> None:
    body = await get(
        system, "/spend", params={"group_by": "agent", "root_run_id": "run_1", "from": "2026-01-01T00:00:00Z"}
    )
    assert body["data"]["rows"][0] == {
        "group": ["analyst"], "cost_nano_usd": 1_234_000, "pending_nano_usd": 0, "input_tokens": 10, "output_tokens": 5, "calls": 1,
    }  # fmt: skip
    request = system.fake.requests("QuerySpend")[0].request
    assert request.filter.root_run_id == "run_1"
    assert getattr(request, "from").seconds == 1767225600


async def test_spend_is_grouped_and_filtered_by_tags_and_every_attribution(system: System) -> None:
    where = {"project_id": "p", "conversation_id": "c", "user_id": "u", "agent": "a", "model": "m", "tool": "t"}
    tags = [("tag", "team=search"), ("tag", "feature=a=b"), ("group_by", "tag:team"), ("group_by", "day")]
    await get(system, "/spend", params=[*where.items(), *tags])
    (found,) = system.fake.requests("QuerySpend")
    assert list(found.request.group_by) == ["tag:team", "day"]
    asked = found.request.filter
    assert {name: getattr(asked, name) for name in where} == where
    assert dict(asked.tags) == {"team": "search", "feature": "a=b"}


async def test_orders_reach_their_services(system: System) -> None:
    async with system.http.put("/api/v1/budgets/all", json={"limit_nano_usd": 7, "window": "day"}) as answer:
        assert (await answer.json())["data"]["available_nano_usd"] == 7
    async with system.http.post("/api/v1/budgets/all/suspend", json={"reason": "a leaked key"}) as answer:
        assert (await answer.json())["data"]["suspended_for"] == "a leaked key"
    async with system.http.post("/api/v1/budgets/all/resume") as answer:
        assert (await answer.json())["data"]["suspended_for"] == ""
    async with system.http.post("/api/v1/proposals/prp_1/votes", json={"option": "approve"}) as answer:
        assert (await answer.json())["data"]["outcome"] == "approve"
    async with system.http.post(f"/api/v1/runs/{fakes.RUN_ID}/cancel") as answer:
        assert (await answer.json())["data"]["state"] == "cancelled"
    async with system.http.post(f"/api/v1/runs/{fakes.RUN_ID}/replay") as answer:
        assert (await answer.json())["data"]["equal"] is True
    async with system.http.post(
        "/api/v1/agents", data=b"kind: Agent", headers={"Content-Type": "application/yaml"}
    ) as answer:
        assert answer.status == 201
        assert (await answer.json())["data"][0]["name"] == "analyst"
    async with system.http.post("/api/v1/conversations", json={"agent": "analyst"}) as answer:
        assert (await answer.json())["data"]["id"] == fakes.CONVERSATION_ID
    assert system.fake.requests("Vote")[0].request.voter_id == "usr_key"
    assert system.fake.requests("Define")[0].request.yaml == "kind: Agent"


@pytest.mark.parametrize(
    ("refusal", "status", "reason"),
    [
        (InvalidArgument("definition", "x", "is unknown"), 400, "INVALID_ARGUMENT"),
        (fakes.over_budget(), 402, "BUDGET_EXHAUSTED"),
        (fakes.suspended_budget(), 402, "BUDGET_SUSPENDED"),
        (PermissionDenied("runs.start"), 403, "PERMISSION_DENIED"),
        (NotFound("definition", "x", reason="DEFINITION_NOT_FOUND"), 404, "DEFINITION_NOT_FOUND"),
        (FailedPrecondition("the run has ended", reason="RUN_ENDED"), 409, "RUN_ENDED"),
        (ResourceExhausted("too many", 2.5, reason="RATE_LIMITED"), 429, "RATE_LIMITED"),
        (Unavailable("away", 1.0), 503, "UNAVAILABLE"),
        (DeadlineExceeded("late"), 504, "DEADLINE_EXCEEDED"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, ServiceError) else None,
)
async def test_refusals_become_problem_details(system: System, refusal: ServiceError, status: int, reason: str) -> None:
    system.fake.refusals["CancelRun"] = refusal
    async with system.http.post(f"/api/v1/runs/{fakes.RUN_ID}/cancel") as answer:
        problem = await answer.json(content_type=None)
    assert answer.content_type == "application/problem+json"
    assert (answer.status, problem["status"], problem["reason"]) == (status, status, reason)
    assert problem["detail"] == refusal.message
    assert problem["remedy"]
    assert problem.get("field") == refusal.metadata.get("field")
    assert answer.headers.get("Retry-After") == {429: "3", 503: "1"}.get(status)


@pytest.mark.parametrize(
    ("method", "path", "options", "status", "words"),
    [
        ("GET", "/api/v1/agents", {"headers": {"Authorization": ""}}, 401, "the request says not who makes it"),
        ("GET", "/api/v1/agents", {"headers": {"Authorization": "Bearer syn_no"}}, 401, "KEY_UNKNOWN"),
        ("GET", "/api/v1/agents", {"headers": {"Authorization": f"Bearer {fakes.EXPIRED_KEY}"}}, 401, "KEY_EXPIRED"),
        ("GET", "/api/v1/agents", {"headers": {"Authorization": "Bearer a.b.c"}}, 401, "token is not valid"),
        ("GET", "/api/v1/runs?limit=0", {}, 400, "query.limit"),
        ("GET", "/api/v1/runs?state=done", {}, 400, "must be one of queued, running"),
        ("POST", "/api/v1/runs", {"json": {"definition": "x", "inptu": "y"}}, 400, "body.input = null: is missing"),
        ("POST", "/api/v1/runs", {"data": b"{", "headers": JSON}, 400, 'body = "{": is not JSON'),
        ("POST", "/api/v1/runs", {"data": b"\xff", "headers": JSON}, 400, "body = None: is not JSON in UTF-8"),
        ("POST", "/api/v1/runs", {"json": order(budget_nano_usd=2**63)}, 400, "body.budget_nano_usd = 9223372036854775808"),
        ("POST", "/api/v1/runs", {"json": order(budget_nano_usd=True)}, 400, "body.budget_nano_usd = true"),
        ("POST", "/api/v1/runs", {"json": order(limit=1)}, 400, "body.limit = 1: is no field here; leave it out"),
        ("GET", "/api/v1/spend?since=2026-01-01", {}, 400, "query.since = '2026-01-01': is no parameter here; this path has"),
        ("PUT", "/api/v1/budgets/b", {"json": {"limit_nano_usd": 5, "scope": {"agnet": "x"}}}, 400, 'body.scope.agnet = "x": is no field'),
        ("POST", "/api/v1/runs", {"data": json.dumps(order())}, 400, "is JSON only with the header Content-Type: application/json"),
        ("GET", "/api/v1/spend?from=9999-12-31T23:59:59-14:00", {}, 400, 'query.from = "9999-12-31T23:59:59-14:00": has no moment in UTC'),
        ("GET", "/api/v1/spend?until=0001-01-01T00:00:00%2B14:00", {}, 400, "has no moment in UTC"),
        ("GET", "/api/v1/spend?tag=team%3Da&tag=team%3Db", {}, 400, 'query.tag = "team=b": is a second value of the same name'),
        ("GET", "/api/v1/spend?tag=team", {}, 400, 'query.tag = "team": is written name=value'),
        ("GET", "/api/v1/runs/run_1?token=1", {}, 400, "is no parameter here; this path has none"),
        ("GET", "/api/v1/events/nothing", {}, 400, "must be one of agent-registry"),
        ("GET", "/api/v1/runs/run_1/updates", {"headers": {"Last-Event-ID": "x"}}, 400, "whole number"),
        ("GET", "/api/v1/runs/run_9/updates", {}, 404, "run_9"),
        ("GET", "/api/v1/nothing", {}, 404, "Not Found"),
        ("DELETE", "/api/v1/runs", {}, 405, "Not Allowed"),
        ("POST", "/api/v1/agents", {"data": io.BytesIO(bytes(1 << 21))}, 413, "at most"),
    ],
)  # fmt: skip
async def test_wrong_requests_are_told_what_is_wrong(
    system: System, method: str, path: str, options: dict[str, object], status: int, words: str
) -> None:
    async with system.http.request(method, path, **options) as answer:  # type: ignore[arg-type]
        problem = await answer.json(content_type=None)
    assert (answer.status, answer.content_type) == (status, "application/problem+json"), problem
    assert words in problem["detail"]


async def test_expired_token_is_refused_with_the_time_it_ended(system: System) -> None:
    expired = system.served.token(ttl=-timedelta(hours=1))
    async with system.http.get("/api/v1/agents", headers={"Authorization": f"Bearer {expired}"}) as answer:
        problem = await answer.json(content_type=None)
    assert (answer.status, problem["reason"]) == (401, "TOKEN_EXPIRED")
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="synod"'


async def test_documents_and_pages_come_from_here_alone(system: System) -> None:
    async with system.http.get("/openapi.json") as answer:
        openapi = await answer.json()
    assert {"/api/v1/runs", "/api/v1/spend", "/api/v1/events/{service}"} <= set(openapi["paths"])
    for path in ("/", "/docs", "/pages/app.js", "/pages/style.css", "/pages/docs.js"):
        async with system.http.get(path) as answer:
            text = await answer.text()
            assert answer.status == 200
            assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
            assert "https://" not in text


async def test_health_names_the_service_that_does_not_answer(system: System) -> None:
    body = await get(system, "/system/health")
    assert {peer["service"] for peer in body["data"]["services"]} >= {"agent-registry", "consensus"}
    assert all(peer["ok"] for peer in body["data"]["services"])


def _claims(token: str) -> str:
    body = token.split(".")[1]
    return base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)).decode()

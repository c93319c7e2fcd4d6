"""Given events, when a command, then events."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import pytest
from agent_registry import domain, keys, roles
from agent_registry.domain import Agent, AgentState, ApiKey, Definition, Principal, RestartIntensity
from agent_registry.errors import (
    KeyExists,
    KeyExpired,
    KeyMissing,
    KeyRevoked,
    KeyUnknown,
    KindTaken,
    NameTaken,
    NotExternal,
    RoleNotGrantable,
    RoleUnknown,
    StaleIncarnation,
    TransitionRefused,
)
from hypothesis import given
from hypothesis import strategies as st
from synod.agent_registry.events import (
    AgentActivated,
    AgentCreated,
    AgentFailed,
    AgentHealthChanged,
    AgentInitialized,
    AgentResumed,
    AgentRunEnded,
    AgentRunStarted,
    AgentSuspended,
    AgentTerminated,
    AgentWentIdle,
    ApiKeyCreated,
    ApiKeyRevoked,
    ExternalAgentRegistered,
    PrincipalCreated,
)
from synod.common.event import Event

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)
INTENSITY = RestartIntensity(failures_max=2, within=timedelta(seconds=60))
KEY = ApiKey("k-1", "laptop", keys.sha256("syn_k-1_secret"))
CREATED = (
    AgentCreated(
        agent_id="agt_1",
        tenant_id="local",
        name="analyst",
        definition_name="analyst",
        definition_version=1,
        definition_digest="d" * 64,
        capabilities=("sql",),
        request_id="req-1",
    ),
    AgentInitialized(agent_id="agt_1"),
    AgentWentIdle(agent_id="agt_1"),
)
CREATE = domain.CreateAgent("agt_1", "local", "analyst", "analyst", 1, "d" * 64, ("sql",), "req-1")
REGISTER = domain.RegisterExternal("agt_2", "local", "outside", ("ocr",), "req-1")
OWNER = PrincipalCreated(principal_id="prn_1", tenant_id="local", name="owner", kind="user", roles=("owner",))


def registered(incarnation: int = 1, request_id: str = "req-1") -> ExternalAgentRegistered:
    return ExternalAgentRegistered(
        agent_id="agt_2",
        tenant_id="local",
        name="outside",
        capabilities=("ocr",),
        incarnation=incarnation,
        request_id=request_id,
    )


def agent(*events: Event) -> Agent:
    return fold(Agent(), domain.evolve_agent, events)


def principal(*events: Event) -> Principal:
    return fold(Principal(), domain.evolve_principal, events)


S = TypeVar("S")


def fold(state: S, evolve: Callable[[S, Event], S], events: Iterable[Event]) -> S:
    for event in events:
        state = evolve(state, event)
    return state


def test_an_agent_is_created_initialized_and_idle_in_one_decision() -> None:
    assert domain.create_agent(Agent(), CREATE) == CREATED
    assert agent(*CREATED).state is AgentState.IDLE


def test_creating_an_agent_again_by_the_same_request_is_no_event() -> None:
    assert domain.create_agent(agent(*CREATED), CREATE) == ()


def test_creating_an_agent_under_a_living_name_is_refused_with_its_holder() -> None:
    with pytest.raises(NameTaken, match="agent name 'analyst' is in use by agt_1"):
        domain.create_agent(agent(*CREATED), replace(CREATE, request_id="req-2"))


def test_first_run_activates_and_last_run_idles() -> None:
    first = domain.record_run_started(agent(*CREATED), "run_1", 5)
    assert first == (
        AgentRunStarted(agent_id="agt_1", run_id="run_1", source_position=5),
        AgentActivated(agent_id="agt_1", run_id="run_1"),
    )
    second = domain.record_run_started(agent(*CREATED, *first), "run_2", 6)
    assert second == (AgentRunStarted(agent_id="agt_1", run_id="run_2", source_position=6),)

    one_left = agent(*CREATED, *first, *second)
    ended = domain.record_run_ended(one_left, "run_1", "completed", NOW, 7, INTENSITY)
    assert [type(event) for event in ended] == [AgentRunEnded]
    last = domain.record_run_ended(agent(*CREATED, *first, *second, *ended), "run_2", "cancelled", NOW, 8, INTENSITY)
    assert [type(event) for event in last] == [AgentRunEnded, AgentWentIdle]

    idle = agent(*CREATED, *first, *second, *ended, *last)
    assert (idle.state, idle.running, idle.runs_completed, idle.runs_failed) == (AgentState.IDLE, frozenset(), 1, 0)


def test_outcomes_told_twice_count_once() -> None:
    started = domain.record_run_started(agent(*CREATED), "run_1", 5)
    running = agent(*CREATED, *started)
    ended = domain.record_run_ended(running, "run_1", "completed", NOW, 6, INTENSITY)
    idle = agent(*CREATED, *started, *ended)
    assert domain.record_run_started(running, "run_1", 5) == ()
    assert domain.record_run_started(idle, "run_1", 5) == ()
    assert domain.record_run_ended(idle, "run_1", "completed", NOW, 6, INTENSITY) == ()


def test_outcomes_for_an_agent_that_is_unknown_or_gone_are_no_event() -> None:
    gone = agent(*CREATED, AgentTerminated(agent_id="agt_1", reason="done"))
    assert domain.record_run_started(Agent(), "run_1", 5) == ()
    assert domain.record_run_started(gone, "run_1", 5) == ()
    assert domain.record_run_ended(gone, "run_1", "failed", NOW, 6, INTENSITY) == ()


def fail(history: list[Event], number: int, at: datetime) -> list[Event]:
    """The history with one more run that failed."""
    started = domain.record_run_started(agent(*history), f"run_{number}", 2 * number)
    history = [*history, *started]
    return [
        *history,
        *domain.record_run_ended(agent(*history), f"run_{number}", "failed", at, 2 * number + 1, INTENSITY),
    ]


def test_failures_past_the_restart_intensity_fail_the_agent() -> None:
    history: list[Event] = list(CREATED)
    for number in (1, 2):
        history = fail(history, number, NOW + number * SECOND)
    assert agent(*history).state is AgentState.IDLE
    history = fail(history, 3, NOW + 60 * SECOND)
    assert history[-1] == AgentFailed(
        agent_id="agt_1", reason="more than 2 runs failed within 60 s; find out why, then resume the agent"
    )
    assert agent(*history).state is AgentState.FAILED
    assert not agent(*history).takes_work


def test_failures_spread_wider_than_the_window_are_borne() -> None:
    history: list[Event] = list(CREATED)
    for number in range(1, 8):
        history = fail(history, number, NOW + number * 31 * SECOND)
    assert agent(*history).state is AgentState.IDLE
    assert agent(*history).runs_failed == 7


def test_resuming_a_failed_agent_forgets_its_failures() -> None:
    history: list[Event] = list(CREATED)
    for number in (1, 2, 3):
        history = fail(history, number, NOW)
    resumed = domain.change_state(agent(*history), AgentState.IDLE, "repaired")
    assert resumed == (AgentResumed(agent_id="agt_1", reason="repaired"),)
    assert agent(*history, *resumed).failures == ()
    assert agent(*fail([*history, *resumed], 4, NOW)).state is AgentState.IDLE


def test_a_suspended_agent_takes_no_work_and_resumes_to_what_still_runs() -> None:
    running = [*CREATED, *domain.record_run_started(agent(*CREATED), "run_1", 5)]
    suspended = [*running, *domain.change_state(agent(*running), AgentState.SUSPENDED, "look into it")]
    assert suspended[-1] == AgentSuspended(agent_id="agt_1", reason="look into it")
    assert not agent(*suspended).takes_work
    resumed = [*suspended, *domain.change_state(agent(*suspended), AgentState.IDLE, "fine")]
    assert agent(*resumed).state is AgentState.ACTIVE


@pytest.mark.parametrize("target", [AgentState.SUSPENDED, AgentState.IDLE, AgentState.TERMINATED])
def test_ordering_the_present_state_is_no_event(target: AgentState) -> None:
    there = replace(agent(*CREATED), state=target)
    assert domain.change_state(there, target, "again") == ()


def test_a_terminated_agent_never_comes_back() -> None:
    gone = agent(*CREATED, AgentTerminated(agent_id="agt_1", reason="done"))
    for target in (AgentState.SUSPENDED, AgentState.IDLE):
        with pytest.raises(TransitionRefused, match=r"is TERMINATED and cannot become .* create a new agent"):
            domain.change_state(gone, target, "please")


def test_an_order_cannot_idle_an_agent_at_work() -> None:
    active = agent(*CREATED, *domain.record_run_started(agent(*CREATED), "run_1", 5))
    with pytest.raises(
        TransitionRefused, match="is ACTIVE and cannot become IDLE; from ACTIVE it can become SUSPENDED, TERM"
    ):
        domain.change_state(active, AgentState.IDLE, "rest")


ORDERS = st.sampled_from([AgentState.SUSPENDED, AgentState.IDLE, AgentState.TERMINATED])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("order"), ORDERS),
        st.tuples(st.just("start"), st.integers(0, 3)),
        st.tuples(st.sampled_from(["completed", "failed", "cancelled"]), st.integers(0, 3)),
    ),
    max_size=40,
)


@given(STEPS)
def test_whatever_happens_only_allowed_transitions_happen(steps: list[tuple[str, object]]) -> None:
    state = agent(*CREATED)
    for position, (what, value) in enumerate(steps, start=1):
        for event in decide(state, what, value, position):
            after = domain.evolve_agent(state, event)
            assert after.state is state.state or after.state in domain.TRANSITIONS[state.state]
            state = after
    if state.state in (AgentState.ACTIVE, AgentState.IDLE):
        assert (state.state is AgentState.ACTIVE) == bool(state.running)


def decide(state: Agent, what: str, value: object, position: int) -> domain.Events:
    at = NOW + position * SECOND
    match what, value:
        case "order", AgentState() as target:
            try:
                return domain.change_state(state, target, "because")
            except TransitionRefused:
                return ()
        case "start", number:
            return domain.record_run_started(state, f"run_{number}", position)
        case "completed" | "failed" | "cancelled" as outcome, number:
            return domain.record_run_ended(state, f"run_{number}", outcome, at, position, INTENSITY)
    return ()


def test_each_registration_of_an_agent_outside_is_a_new_incarnation() -> None:
    assert domain.register_external(Agent(), REGISTER) == (registered(),)
    again = replace(REGISTER, request_id="req-2")
    assert domain.register_external(agent(registered()), again) == (registered(2, "req-2"),)


def test_registering_again_by_the_same_request_is_no_event() -> None:
    assert domain.register_external(agent(registered()), REGISTER) == ()


def test_an_agent_outside_cannot_take_the_name_of_one_of_the_runtime() -> None:
    with pytest.raises(NameTaken):
        domain.register_external(agent(*CREATED), replace(REGISTER, name="analyst"))


def test_a_suspension_outlives_a_new_incarnation() -> None:
    suspended = agent(registered(), AgentSuspended(agent_id="agt_2", reason="quarantine"), registered(2))
    assert suspended.state is AgentState.SUSPENDED
    assert suspended.incarnation == 2


def test_a_zombie_incarnation_is_refused_and_told_what_to_do() -> None:
    with pytest.raises(
        StaleIncarnation, match=r"incarnation 1 of agent 'outside' .* is 2; stop this process, or register"
    ):
        domain.check_heartbeat(agent(registered(), registered(2)), 1)


def test_a_heartbeat_for_an_agent_of_the_runtime_is_refused() -> None:
    with pytest.raises(NotExternal, match="lives in agent-runtime"):
        domain.check_heartbeat(agent(*CREATED), 0)


def test_health_is_an_event_with_evidence_only_when_it_changes() -> None:
    alive = agent(registered())
    suspect = domain.report_health(alive, 1, "suspect", NOW, "no heartbeat for 15.0 s")
    assert suspect == (
        AgentHealthChanged(
            agent_id="agt_2",
            incarnation=1,
            health="suspect",
            last_heartbeat_at=NOW,
            evidence="no heartbeat for 15.0 s",
        ),
    )
    assert domain.report_health(agent(registered(), *suspect), 1, "suspect", NOW, "still") == ()
    assert domain.report_health(alive, 2, "suspect", NOW, "of another incarnation") == ()
    assert not agent(registered(), *suspect).takes_work


@pytest.mark.parametrize(
    ("silence_s", "health"),
    [(0, "alive"), (14.9, "alive"), (15, "suspect"), (29.9, "suspect"), (30, "offline"), (9_000, "offline")],
)
def test_health_follows_from_missed_intervals(silence_s: float, health: str) -> None:
    now = NOW + timedelta(seconds=silence_s)
    assert domain.health_at(now, NOW, timedelta(seconds=5), (3, 6)) == health


def with_key(**changes: object) -> Principal:
    return replace(principal(OWNER), keys=(replace(KEY, **changes),))


def test_a_key_opens_until_it_expires() -> None:
    presented = keys.parse("syn_k-1_" + "s" * 20)
    holder = with_key(sha256=presented.sha256, expires_at=NOW)
    domain.check_key(holder, presented, NOW - SECOND)
    with pytest.raises(KeyExpired, match=r"'k-1' \(laptop\) expired at 2026-01-01T00:00:00Z; .* CreateApiKey"):
        domain.check_key(holder, presented, NOW)


def test_a_revoked_key_says_why() -> None:
    presented = keys.parse("syn_k-1_" + "s" * 20)
    with pytest.raises(KeyRevoked, match="was revoked: lost on a train"):
        domain.check_key(with_key(sha256=presented.sha256, revoked="lost on a train"), presented, NOW)


def test_what_is_wrong_with_a_key_is_told_only_to_who_has_its_secret() -> None:
    guess = keys.parse("syn_k-1_" + "x" * 20)
    for holder in (with_key(), with_key(expires_at=NOW), with_key(revoked="lost"), Principal()):
        with pytest.raises(KeyUnknown):
            domain.check_key(holder, guess, NOW + SECOND)


def test_a_key_of_the_key_file_takes_the_place_of_the_one_before() -> None:
    first = domain.ensure_key(principal(OWNER), ApiKey("k-1", "key file", "a" * 64))
    assert [type(event) for event in first] == [ApiKeyCreated]
    holder = principal(OWNER, *first)
    assert domain.ensure_key(holder, ApiKey("k-1", "key file", "a" * 64)) == ()
    second = domain.ensure_key(holder, ApiKey("k-2", "key file", "b" * 64))
    assert [type(event) for event in second] == [ApiKeyRevoked, ApiKeyCreated]
    both = principal(OWNER, *first, *second)
    assert [(key.id, key.revoked is None) for key in both.keys] == [("k-1", False), ("k-2", True)]


def test_a_changed_secret_under_the_same_key_id_replaces_it() -> None:
    first = domain.ensure_key(principal(OWNER), ApiKey("svc-x", "key file", "a" * 64))
    second = domain.ensure_key(principal(OWNER, *first), ApiKey("svc-x", "key file", "b" * 64))
    after = principal(OWNER, *first, *second)
    assert [(key.sha256, key.revoked) for key in after.keys] == [("b" * 64, None)]


def test_revoking_a_key_is_once_and_unknown_keys_are_named() -> None:
    holder = with_key()
    assert domain.revoke_key(holder, "k-1", "lost") == (
        ApiKeyRevoked(principal_id="prn_1", key_id="k-1", reason="lost"),
    )
    assert domain.revoke_key(with_key(revoked="lost"), "k-1", "again") == ()
    with pytest.raises(KeyMissing, match="no API key 'k-9'"):
        domain.revoke_key(holder, "k-9", "lost")


def test_a_key_request_repeated_says_that_its_secret_was_shown() -> None:
    with pytest.raises(KeyExists, match="shown once; revoke it"):
        domain.create_key(with_key(), KEY)


def test_a_principal_is_created_once() -> None:
    command = domain.CreatePrincipal("prn_2", "local", "ann", "user", ("viewer",), "req-1")
    created = domain.create_principal(Principal(), command)
    assert domain.create_principal(principal(*created), command) == ()
    with pytest.raises(NameTaken, match="principal name 'ann' is in use by prn_2"):
        domain.create_principal(principal(*created), replace(command, request_id="req-2"))


def test_same_content_is_the_same_version() -> None:
    first = domain.define(Definition(), domain.Define("analyst", "Agent", "a" * 64, "{}"))
    one = fold(Definition(), domain.evolve_definition, first)
    second = domain.define(one, domain.Define("analyst", "Agent", "b" * 64, "{}"))
    two = fold(one, domain.evolve_definition, second)
    assert [event.definition_version for event in (*first, *second)] == [1, 2]  # type: ignore[attr-defined]
    assert domain.define(two, domain.Define("analyst", "Agent", "b" * 64, "{}")) == ()


def test_going_back_to_older_content_is_a_new_version() -> None:
    two = Definition("Agent", ("a" * 64, "b" * 64))
    (again,) = domain.define(two, domain.Define("analyst", "Agent", "a" * 64, "{}"))
    assert again.definition_version == 3  # type: ignore[attr-defined]


def test_a_name_keeps_its_kind() -> None:
    one = fold(
        Definition(), domain.evolve_definition, domain.define(Definition(), domain.Define("a", "Agent", "a", "{}"))
    )
    with pytest.raises(KindTaken):
        domain.define(one, domain.Define("a", "Team", "b", "{}"))


def test_nobody_grants_what_he_does_not_hold() -> None:
    roles.check_grantable(["owner", "agent"], lambda permission: True)
    with pytest.raises(RoleNotGrantable, match="role 'owner' includes"):
        roles.check_grantable(["owner"], lambda permission: permission != "*")
    with pytest.raises(RoleUnknown, match="owner, operator, viewer, agent"):
        roles.check_grantable(["service"], lambda permission: True)

"""The synod command as a person and a program meet it, against services that answer as the test says."""

import json
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from google.protobuf.timestamp_pb2 import Timestamp
from synod.agent_registry.v1 import agent_registry_pb2 as registry_pb
from synod.agent_runtime.v1 import agent_runtime_pb2 as runtime_pb
from synod.consensus.v1 import consensus_pb2 as consensus_pb
from synod.cost_ledger.v1 import cost_ledger_pb2 as ledger_pb
from synod.eventlog.v1 import eventlog_pb2 as log_pb
from synod.tool_executor.v1 import tool_executor_pb2 as tools_pb
from synod_client import SynodError, errors
from synod_client.checkpoints import sampled, signed_text
from synod_client.cli import app
from synod_client.cli.output import Exit, as_dict, exit_code
from synod_client.endpoints import SERVICES
from synod_client.testing import FakeSystem, Fault
from typer.main import get_command
from typer.testing import CliRunner

SYNOD = str(Path(sys.executable).parent / "synod")
# A shell lets what it starts in the background ignore SIGINT, and a child inherits that.
HEARING = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
HEARING_SIGINT = (sys.executable, "-c", HEARING)
WAIT_S = 30
Command = Callable[..., Any]


@pytest.fixture
def data(fakes: FakeSystem, tmp_path: Path) -> Path:
    fakes.write(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def synod(data: Path) -> Command:
    """Runs `synod ...` in this process."""

    def invoke(*arguments: str, input: str | None = None) -> Any:
        environment = {"SYNOD_DATA": str(data), "COLUMNS": "200", "SYNOD_API_KEY": None, "SYNOD_PORT_BASE": None}
        return CliRunner().invoke(app, list(arguments), input=input, env=environment)

    return invoke


def commands(group: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command with the words that call it."""
    for name, command in (group or get_command(app)).commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


# Help and usage


@pytest.mark.parametrize(
    ("path", "command"), list(commands()), ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_every_command_shows_an_example_on_one_line_that_its_options_accept(
    path: tuple[str, ...], command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"}).output
    (example,) = re.findall(r"Example: (synod .*?)\s*\n", shown)
    words = shlex.split(example)
    assert words[1 : len(path) + 1] == list(path)
    monkeypatch.chdir(tmp_path)
    for name in [word for word in words if word.endswith((".csv", ".yaml"))] + [
        "deploy/examples/model-scout/agents.yaml"
    ]:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    context = command.make_context(" ".join(path), words[len(path) + 1 :])
    assert context.params


def test_help_documents_every_exit_code() -> None:
    shown = CliRunner().invoke(app, ["--help"]).output
    documented = {int(code) for code in re.findall(r"^ +(\d+)  \w", shown, re.MULTILINE)}
    assert documented == {int(code) for code in Exit}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidInput, 3),
        (errors.Replaced, 3),
        (errors.NotAllowed, 4),
        (errors.NotFound, 5),
        (errors.TryAgain, 6),
        (errors.Broken, 7),
        (errors.BudgetExhausted, 8),
        (errors.BudgetSuspended, 8),
        (errors.TaskFailed, 1),
    ],
)
def test_each_kind_of_error_has_its_exit_code(error: type[SynodError], code: int) -> None:
    assert exit_code(error("no")) == code


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "helper", "hi", "--budget", "1x"], "'1x' is not an amount in US dollars"),
        (["run", "helper", "hi", "--file", "nowhere.csv"], "nowhere.csv' does not exist"),
        (["run", "helper", "hi", "--budget", "0"], "a budget of 0 pays for nothing"),
        (["run", "helper", "hi", "--budget", "0,10"], "'0,10' is not an amount in US dollars"),
        (["budget", "set", "daily", "9999999999999"], "'9999999999999' is more than can be counted"),
        (["budget", "set", "daily", "9" * 20, "--unit", "tokens"], "is not a whole number of at most 18 digits"),
        (["spend", "--since", "0001-01-01T00:00+14:00"], "'0001-01-01T00:00+14:00' is not a day"),
        (["spend", "--since", "999999d"], "'999999d' is not a day"),
        (["events", "read", "consensus", "--since", "9999-12-31T23:59-14:00"], "'9999-12-31T23:59-14:00' is no moment"),
        (["events", "read", "consensus", "--as-of", "0001-01-01T00:00+14:00"], "'0001-01-01T00:00+14:00' is no moment"),
        (["events", "read", "consensus", "--after", "9" * 20], "'--after': Input should be less than or equal to"),
        (["budget", "set", "daily", "five"], "'five' is not an amount in US dollars"),
        (
            ["budget", "set", "daily", "5", "--window", "fortnight"],
            "'fortnight' is not one of 'lifetime', 'hour', 'day'",
        ),
        (["propose", "x", "--voter", "ada", "--rule", "ranked"], "'ranked' is no rule; rules are majority, two_thirds"),
        (["propose", "x", "--voter", "ada=heavy"], "'ada=heavy' is not NAME or NAME=WEIGHT"),
        (["propose", "x", "--voter", "ada", "--set", "rate"], "'rate' is not NAME=JSON"),
        (["events", "read", "ledger"], "'ledger' is no service; services are agent-registry"),
        (["events", "verify", "ledger"], "'ledger' is no service"),
        (["events", "verify", "--stream", "order/1"], "--stream goes with one service"),
        (["events", "prove", "consensus"], "give a position or --stream"),
        (["events", "prove", "consensus", "7", "--stream", "order/1"], "give a position or --stream"),
        (["events", "read", "cost-ledger", "--limit", "0"], "'--limit': Input should be greater than or equal to 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_names_the_value_and_what_is_right(
    synod: Command, fakes: FakeSystem, arguments: list[str], words: str
) -> None:
    refused = synod(*arguments)
    assert refused.exit_code == Exit.USAGE
    assert words in " ".join(re.sub("[│╭╮╰╯─]", " ", refused.stderr).split())
    assert not fakes.asked


def test_a_system_that_is_not_running_is_told_with_how_to_start_it(tmp_path: Path) -> None:
    environment = {"SYNOD_DATA": str(tmp_path), "SYNOD_API_KEY": "syn_key", "SYNOD_PORT_BASE": "1"}
    absent = CliRunner().invoke(app, ["runs"], env=environment)
    assert absent.exit_code == Exit.UNAVAILABLE
    assert "agent-registry at 127.0.0.1:2 does not answer" in absent.stderr
    assert "`synod up` starts it" in absent.stderr
    keyless = CliRunner().invoke(app, ["runs"], env={**environment, "SYNOD_API_KEY": None})
    assert (keyless.exit_code, keyless.stdout) == (Exit.NOT_ALLOWED, "")
    assert "no API key: set SYNOD_API_KEY, or start a system" in keyless.stderr


def test_a_refusal_is_on_stderr_with_every_fields_problem(synod: Command, fakes: FakeSystem) -> None:
    fakes.answer(
        "agent-registry", "DiscoverAgents", Fault(grpc.StatusCode.NOT_FOUND, "no agent can [sql]", "NOT_FOUND")
    )
    refused = synod("agents", "--can", "sql")
    assert (refused.exit_code, refused.stdout) == (Exit.NOT_FOUND, "")
    assert refused.stderr == "error no agent can [sql]\n"


# Tables and JSON


def test_a_table_is_for_people_and_json_for_programs(synod: Command, fakes: FakeSystem) -> None:
    run = runtime_pb.Run(id="run_1", definition_name="helper", state=runtime_pb.RUN_STATE_COMPLETED, model_calls=2)
    run.started_at.FromSeconds(1_767_225_600)
    fakes.answer("agent-runtime", "ListRuns", runtime_pb.ListRunsResponse(runs=[run]))
    header, row = synod("runs").stdout.splitlines()
    assert header.split() == ["run", "definition", "state", "model", "calls", "tool", "calls", "started"]
    assert row.split() == ["run_1", "helper", "completed", "2", "0", "2026-01-01", "00:00:00Z"]
    (item,) = json.loads(synod("runs", "--json", "--all").stdout)
    assert (item["id"], item["state"], item["tool_calls"]) == ("run_1", "RUN_STATE_COMPLETED", 0)
    assert [request.roots_only for request in fakes.requests("ListRuns")] == [True, False]


def test_cells_are_shown_as_they_are_and_on_one_line_when_piped(synod: Command, fakes: FakeSystem) -> None:
    agent = registry_pb.Agent(name="helper", capabilities=["[red]sql", *(f"capability-{n}" for n in range(30))])
    fakes.answer("agent-registry", "ListAgents", registry_pb.ListAgentsResponse(agents=[agent]))
    _, row = synod("agents").stdout.splitlines()
    assert "[red]sql" in row
    assert "capability-29" in row


def test_all_pages_of_agents_are_listed(synod: Command, fakes: FakeSystem) -> None:
    pages = [
        registry_pb.ListAgentsResponse(agents=[registry_pb.Agent(name="ada")], next_page_token="more"),
        registry_pb.ListAgentsResponse(agents=[registry_pb.Agent(name="ben")]),
    ]
    fakes.answer("agent-registry", "ListAgents", *pages)
    assert [agent["name"] for agent in json.loads(synod("agents", "--json").stdout)] == ["ada", "ben"]
    assert [request.page_token for request in fakes.requests("ListAgents")] == ["", "more"]


def test_definitions_of_several_files_are_registered_together(
    synod: Command, fakes: FakeSystem, tmp_path: Path
) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("kind: Agent")
    second.write_text("kind: Team")
    found = registry_pb.Definition(kind="Agent", name="a", version=1, digest="d" * 64, created=True)
    fakes.answer("agent-registry", "Define", registry_pb.DefineResponse(definitions=[found]))
    shown = synod("define", "--check", str(first), str(second))
    assert shown.stdout.splitlines()[1].split() == ["Agent", "a", "1", "d" * 12, "new"]
    (request,) = fakes.requests("Define")
    assert (request.yaml, request.validate_only) == ("kind: Agent\n---\nkind: Team", True)


def test_spend_is_grouped_as_asked_and_shown_in_dollars(synod: Command, fakes: FakeSystem) -> None:
    row = ledger_pb.SpendRow(group=["analyst", "sim-1"], cost_nano_usd=1_500_000, calls=3, input_tokens=10)
    found = ledger_pb.QuerySpendResponse(rows=[row], total_nano_usd=1_500_000)
    fakes.answer("cost-ledger", "QuerySpend", found)
    title, _, shown = synod("spend", "--by", "agent", "--by", "model", "--run", "run_1").stdout.splitlines()
    assert title.strip() == "Total $0.0015"
    assert shown.split() == ["analyst", "sim-1", "$0.0015", "3", "10", "0"]
    (request,) = fakes.requests("QuerySpend")
    assert (list(request.group_by), request.filter.root_run_id) == (["agent", "model"], "run_1")


def test_a_price_is_set_in_dollars_per_million_tokens(synod: Command, fakes: FakeSystem) -> None:
    kept = ledger_pb.Price(provider="ollama", model="qwen3", input_pico_usd=100_000, output_pico_usd=400_000)
    fakes.answer("cost-ledger", "SetPrice", kept)
    shown = synod("prices", "set", "ollama/qwen3", "0.10", "0.4")
    assert (shown.exit_code, shown.stdout.split()[-3:]) == (Exit.DONE, ["ollama/qwen3", "$0.10", "$0.40"])
    (asked,) = fakes.requests("SetPrice")
    assert (asked.provider, asked.model) == ("ollama", "qwen3")
    assert (asked.input_pico_usd, asked.output_pico_usd) == (100_000, 400_000)


def test_the_finest_price_that_is_kept_is_set(synod: Command, fakes: FakeSystem) -> None:
    fakes.answer("cost-ledger", "SetPrice", ledger_pb.Price())
    assert synod("prices", "set", "ollama/qwen3", "0.000001", "1.234567000").exit_code == Exit.DONE
    (asked,) = fakes.requests("SetPrice")
    assert (asked.input_pico_usd, asked.output_pico_usd) == (1, 1_234_567)


def test_a_variable_is_declared_as_a_number_or_a_choice(synod: Command, fakes: FakeSystem) -> None:
    fakes.answer("consensus", "DeclareVariable", consensus_pb.Variable(name="rate", value_json="0.5", version=1))
    assert synod("variables", "declare", "rate", "0.5", "--max", "2").exit_code == Exit.DONE
    assert synod("variables", "declare", "mode", "safe", "--choice", "safe", "--choice", "fast").exit_code == Exit.DONE
    number, choice = fakes.requests("DeclareVariable")
    assert (number.float_range.max, number.initial_value_json) == (2.0, "0.5")
    assert (list(choice.choices.options), choice.initial_value_json) == (["safe", "fast"], '"safe"')


def test_a_file_that_is_not_utf8_is_refused_by_name(synod: Command, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe")
    refused = synod("define", str(tmp_path / "bad.yaml"))
    assert refused.exit_code == Exit.USAGE
    assert "not UTF-8" in refused.stderr.replace("\n", " ")


def test_version_is_told(synod: Command) -> None:
    assert synod("--version").stdout.startswith("synod 0.")


def test_a_budget_is_set_in_dollars(synod: Command, fakes: FakeSystem) -> None:
    fakes.answer("cost-ledger", "SetBudget", ledger_pb.Budget(budget_id="daily", limit=5_000_000_000))
    shown = synod("budget", "set", "daily", "5", "--window", "day", "--soft", "--agent", "analyst")
    assert "$5.00" in shown.stdout
    (request,) = fakes.requests("SetBudget")
    assert (request.limit_nano_usd, request.window, request.hard) == (5_000_000_000, "day", False)
    assert request.scope.agent == "analyst"


def test_a_proposal_carries_weights_rule_and_change(synod: Command, fakes: FakeSystem) -> None:
    opened = consensus_pb.Proposal(id="prp_1", title="[raise] it", state=consensus_pb.PROPOSAL_STATE_OPEN)
    fakes.answer("consensus", "Propose", opened)
    shown = synod(
        "propose", "[raise] it", "--voter", "ada=2", "--voter", "ben", "--rule", "two_thirds", "--set", "rate=0.2"
    )
    assert shown.exit_code == Exit.DONE
    assert "prp_1  [raise] it" in shown.stdout
    (request,) = fakes.requests("Propose")
    assert [(voter.id, voter.weight) for voter in request.electorate] == [("ada", 2), ("ben", 1)]
    assert request.rule.kind == consensus_pb.RULE_KIND_TWO_THIRDS
    assert (request.change.variable, request.change.value_json) == ("rate", "0.2")
    assert request.request_id


def test_a_tool_is_granted(synod: Command, fakes: FakeSystem) -> None:
    fakes.answer("tool-executor", "GrantTool", tools_pb.Grant(id="grn_1", agent="analyst", tool="calc"))
    fakes.answer("agent-registry", "GetAgent", registry_pb.Agent(name="analyst"))
    granted = synod("tools", "grant", "analyst", "calc")
    assert "grn_1" in granted.stdout
    assert not granted.stderr


@pytest.mark.parametrize("agent", ["analist", "*"])
def test_a_grant_to_nobody_is_given_with_a_warning(synod: Command, fakes: FakeSystem, agent: str) -> None:
    missing = Fault(grpc.StatusCode.NOT_FOUND, "there is none")
    fakes.answer("tool-executor", "GrantTool", tools_pb.Grant(id="grn_1", agent=agent, tool="calc"))
    fakes.answer("agent-registry", "GetAgent", missing)
    fakes.answer("agent-registry", "GetDefinition", missing)
    granted = synod("tools", "grant", agent, "calc")
    assert (granted.exit_code, "grn_1" in granted.stdout) == (Exit.DONE, True)
    assert ("no agent and no definition is called 'analist'" in granted.stderr) == (agent != "*")


def test_a_budget_of_nobody_is_set_with_a_warning(synod: Command, fakes: FakeSystem) -> None:
    missing = Fault(grpc.StatusCode.NOT_FOUND, "there is none")
    fakes.answer("cost-ledger", "SetBudget", ledger_pb.Budget(budget_id="daily", window="day"))
    fakes.answer("agent-registry", "GetAgent", missing)
    fakes.answer("agent-registry", "GetDefinition", missing)
    told = synod("budget", "set", "daily", "5", "--agent", "analist")
    assert (told.exit_code, "daily" in told.stdout) == (Exit.DONE, True)
    assert "'analist'; the budget is of use once there is one" in told.stderr
    assert not synod("budget", "set", "daily", "5").stderr


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("openai/gpt-55", "no price of 'openai/gpt-55' is known; near it are openai/gpt-5.5"),
        ("openai/whisper", "no price of 'openai/whisper' is known; the budget is of use once it is called"),
        ("openai/gpt-5.5-mni", "near it are openai/gpt-5.5"),
        ("openai/gpt-5.5", ""),
        ("openai/gpt-5.5-2026-04-01", ""),
        ("openai/*", ""),
    ],
)
def test_a_budget_of_a_model_that_nobody_knows_is_set_with_a_warning(
    synod: Command, fakes: FakeSystem, model: str, told: str
) -> None:
    fakes.answer("cost-ledger", "SetBudget", ledger_pb.Budget(budget_id="b3", hard=True))
    prices = [ledger_pb.Price(provider="openai", model=name) for name in ("gpt-5.5", "o9")]
    fakes.answer("cost-ledger", "ListPrices", ledger_pb.ListPricesResponse(prices=prices))
    shown = synod("budget", "set", "b3", "5", "--model", model)
    assert (shown.exit_code, "b3" in shown.stdout) == (Exit.DONE, True)
    assert (told in shown.stderr, bool(shown.stderr)) == (True, bool(told))


def test_a_grant_is_given_without_a_warning_by_who_may_not_read_agents(synod: Command, fakes: FakeSystem) -> None:
    fakes.answer("tool-executor", "GrantTool", tools_pb.Grant(id="grn_1", agent="analyst", tool="calc"))
    fakes.answer("agent-registry", "GetAgent", Fault(grpc.StatusCode.PERMISSION_DENIED, "agents.read"))
    granted = synod("tools", "grant", "analyst", "calc")
    assert (granted.exit_code, granted.stderr) == (Exit.DONE, "")


# Runs


def run_that_ends(fakes: FakeSystem, **ended: Any) -> None:
    started = runtime_pb.Run(id="run_1", definition_name="helper")
    update = runtime_pb.RunUpdate(cursor=1, agent="helper", type="RunStarted", summary="starts [now]")
    fakes.answer("agent-runtime", "StartRun", started)
    fakes.answer("agent-runtime", "WatchRun", [update])
    fakes.answer("agent-runtime", "GetRun", runtime_pb.Run(id="run_1", definition_name="helper", **ended))


def test_a_run_is_watched_to_its_end(synod: Command, fakes: FakeSystem, tmp_path: Path) -> None:
    run_that_ends(fakes, state=runtime_pb.RUN_STATE_COMPLETED, output="42 [sic]")
    fakes.answer("tool-executor", "PutFile", tools_pb.WorkspaceFile(path="prices.csv"))
    (tmp_path / "prices.csv").write_text("model,price")
    shown = synod("run", "helper", "add", "--budget", "0.10", "--file", str(tmp_path / "prices.csv"))
    assert shown.exit_code == Exit.DONE
    first, progress, answer = shown.stdout.splitlines()
    assert (first, answer) == ("run_1", "42 [sic]")
    assert progress.endswith("starts [now]")
    (started,), (put,) = fakes.requests("StartRun"), fakes.requests("PutFile")
    assert (started.definition, started.input, started.budget_nano_usd) == ("helper", "add", 100_000_000)
    assert (put.path, put.content, put.workspace_id) == ("prices.csv", b"model,price", started.workspace_id)


def test_the_tags_of_a_run_go_with_its_order(synod: Command, fakes: FakeSystem) -> None:
    run_that_ends(fakes)
    synod("run", "helper", "add", "--detach", "--tag", "team=search", "--tag", "feature=chat")
    assert dict(fakes.requests("StartRun")[0].tags) == {"team": "search", "feature": "chat"}
    refused = synod("run", "helper", "add", "--tag", "team")
    assert (refused.exit_code, len(fakes.requests("StartRun"))) == (Exit.USAGE, 1)


def test_a_run_that_fails_exits_with_1_and_says_why_on_stderr(synod: Command, fakes: FakeSystem) -> None:
    failure = runtime_pb.RunFailure(reason="UNKNOWN_MODEL", message="no model [x]")
    run_that_ends(fakes, state=runtime_pb.RUN_STATE_FAILED, failure=failure)
    failed = synod("run", "helper", "add")
    assert failed.exit_code == Exit.NOT_TRUE
    assert failed.stderr == "failed UNKNOWN_MODEL: no model [x]\n"


def test_a_run_as_json_is_one_object_a_line_and_the_run_last(synod: Command, fakes: FakeSystem) -> None:
    run_that_ends(fakes, state=runtime_pb.RUN_STATE_COMPLETED, output="42")
    lines = [json.loads(line) for line in synod("run", "helper", "add", "--json").stdout.splitlines()]
    assert [lines[0]["cursor"], lines[-1]["output"]] == ["1", "42"]


def test_a_detached_run_prints_its_id_and_nothing_more(synod: Command, fakes: FakeSystem) -> None:
    run_that_ends(fakes)
    assert synod("run", "helper", "add", "--detach").stdout == "run_1\n"
    assert not fakes.requests("WatchRun")


def test_a_replay_that_differs_exits_with_1(synod: Command, fakes: FakeSystem) -> None:
    equal = runtime_pb.ReplayRunResponse(equal=True, runs=1, events=9)
    fakes.answer("agent-runtime", "ReplayRun", equal, runtime_pb.ReplayRunResponse(first_difference="event 7"))
    assert synod("replay", "run_1").exit_code == Exit.DONE
    different = synod("replay", "run_1")
    assert different.exit_code == Exit.NOT_TRUE
    assert different.stdout.startswith("different: event 7")


def test_chat_shows_tokens_as_they_come_and_marks_the_simulator(synod: Command, fakes: FakeSystem) -> None:
    called = runtime_pb.RunUpdate(cursor=4, type="ModelCallSucceeded")
    called.data["simulated"] = True
    tokens = [runtime_pb.RunUpdate(type="Token", summary=text) for text in ("good ", "[day]")]
    plain = runtime_pb.RunUpdate(cursor=5, type="ModelCallSucceeded")
    fakes.answer("agent-runtime", "CreateConversation", runtime_pb.Conversation(id="cnv_1"))
    fakes.answer("agent-runtime", "SendMessage", runtime_pb.Run(id="run_1", definition_name="helper"))
    fakes.answer("agent-runtime", "WatchRun", [*tokens, called], [plain])
    fakes.answer("agent-runtime", "GetRun", runtime_pb.Run(state=runtime_pb.RUN_STATE_COMPLETED, output="whole answer"))
    shown = synod("chat", "helper", "-m", "hello", "-m", "again")
    assert shown.exit_code == Exit.DONE
    assert shown.stdout == "helper good [day] (simulated)\nhelper whole answer\n"
    assert [request.text for request in fakes.requests("SendMessage")] == ["hello", "again"]
    assert all(request.tokens for request in fakes.requests("WatchRun"))


@pytest.mark.parametrize("typed", ["", "\n", "hello\n"], ids=["nothing", "an empty line", "one line, then the end"])
def test_chat_ends_with_an_empty_line_or_the_end_of_its_input(synod: Command, fakes: FakeSystem, typed: str) -> None:
    fakes.answer("agent-runtime", "CreateConversation", runtime_pb.Conversation(id="cnv_1"))
    fakes.answer("agent-runtime", "SendMessage", runtime_pb.Run(id="run_1", definition_name="helper"))
    fakes.answer("agent-runtime", "WatchRun", [runtime_pb.RunUpdate(cursor=1)])
    fakes.answer("agent-runtime", "GetRun", runtime_pb.Run(state=runtime_pb.RUN_STATE_COMPLETED, output="hi"))
    shown = synod("chat", "helper", input=typed)
    assert shown.exit_code == Exit.DONE
    assert ("helper hi" in shown.stdout) == ("hello" in typed)


@pytest.mark.parametrize("reason", ["BUDGET_EXHAUSTED", "BUDGET_SUSPENDED"])
def test_a_chat_whose_run_fails_says_why(synod: Command, fakes: FakeSystem, reason: str) -> None:
    failure = runtime_pb.RunFailure(reason=reason, message="nothing left")
    fakes.answer("agent-runtime", "CreateConversation", runtime_pb.Conversation(id="cnv_1"))
    fakes.answer("agent-runtime", "SendMessage", runtime_pb.Run(id="run_1", definition_name="helper"))
    fakes.answer("agent-runtime", "WatchRun", [runtime_pb.RunUpdate(cursor=1)])
    fakes.answer("agent-runtime", "GetRun", runtime_pb.Run(state=runtime_pb.RUN_STATE_FAILED, failure=failure))
    failed = synod("chat", "helper", "-m", "hello")
    assert (failed.exit_code, failed.stderr) == (Exit.BUDGET, f"{reason} nothing left\n")


# Logs and views


def test_verify_asks_every_service_and_exits_with_1_when_one_log_is_broken(synod: Command, fakes: FakeSystem) -> None:
    for service in SERVICES:
        fakes.answer(service, "Verify", log_pb.VerifyResponse(ok=True, events=7, head_hash=b"\xab" * 32))
    whole = synod("events", "verify")
    assert whole.exit_code == Exit.DONE
    assert [line.split()[:3] for line in whole.stdout.splitlines()[1:-1]] == [[name, "7", "holds"] for name in SERVICES]
    fakes.answer("cost-ledger", "Verify", log_pb.VerifyResponse(broken_position=3, reason="hash differs"))
    broken = synod("events", "verify")
    assert broken.exit_code == Exit.NOT_TRUE
    assert "BROKEN at 3: hash differs" in broken.stdout
    assert synod("events", "verify", "consensus").exit_code == Exit.DONE
    assert json.loads(synod("events", "verify", "cost-ledger", "--json").stdout)["cost-ledger"]["ok"] is False


KEY = Ed25519PrivateKey.generate()


def signed(log: str, position: int, key: Ed25519PrivateKey = KEY) -> log_pb.Checkpoint:
    checkpoint = log_pb.Checkpoint(log=log, position=position, head_hash=b"h" * 32, root_hash=b"r" * 32)
    checkpoint.signed_at.FromJsonString("2026-11-01T12:00:00.000001Z")
    checkpoint.key_id = sha256(key.public_key().public_bytes_raw()).hexdigest()[:16]
    checkpoint.signature = key.sign(signed_text(checkpoint))
    return checkpoint


def export_key(file: Path, key: Ed25519PrivateKey = KEY) -> Path:
    file.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return file


@pytest.fixture
def attested(fakes: FakeSystem) -> FakeSystem:
    """A log whose service says that a checkpoint over position 5 holds."""
    fakes.answer("consensus", "Verify", log_pb.VerifyResponse(ok=True, events=7, checkpoints=2, attested_position=5))
    page = log_pb.ListCheckpointsResponse(checkpoints=[signed("consensus", 5)])
    fakes.answer("consensus", "ListCheckpoints", page)
    return fakes


def test_verify_shows_how_far_a_log_is_signed(synod: Command, attested: FakeSystem) -> None:
    lines = synod("events", "verify", "consensus").stdout.splitlines()
    assert lines[1].split()[-1] == "5"
    assert lines[-1] == "1 of 1 logs verified; 5 of 7 events attested to by signed checkpoints"


def test_verify_checks_who_signed_by_the_keys_that_the_system_exported(
    synod: Command, attested: FakeSystem, data: Path
) -> None:
    exported = export_key(data / "keys" / "consensus.checkpoint.pub.pem")
    assert synod("events", "verify", "consensus").stdout.splitlines()[1].split()[-2:] == ["5", signed("", 5).key_id]
    export_key(exported, Ed25519PrivateKey.generate())
    foreign = synod("events", "verify", "consensus")
    assert foreign.exit_code == Exit.NOT_TRUE
    assert (
        f"BROKEN at 5: the checkpoint is forged: it is signed by key {signed('', 5).key_id}, not by" in foreign.stdout
    )


def test_verify_checks_the_signature_itself(synod: Command, attested: FakeSystem, data: Path) -> None:
    export_key(data / "keys" / "consensus.checkpoint.pub.pem")
    changed = signed("consensus", 5)
    changed.root_hash = b"x" * 32
    attested.answer("consensus", "ListCheckpoints", log_pb.ListCheckpointsResponse(checkpoints=[changed]))
    forged = synod("events", "verify", "consensus")
    assert forged.exit_code == Exit.NOT_TRUE
    assert "BROKEN at 5: the checkpoint is forged: its signature is not valid" in forged.stdout


def test_verify_takes_a_public_key_from_elsewhere(synod: Command, attested: FakeSystem, tmp_path: Path) -> None:
    own = export_key(tmp_path / "own.pem")
    other = export_key(tmp_path / "other.pem", Ed25519PrivateKey.generate())
    assert synod("events", "verify", "consensus", "--key", str(other), "--key", str(own)).exit_code == Exit.DONE
    assert synod("events", "verify", "consensus", "--key", str(other)).exit_code == Exit.NOT_TRUE
    (tmp_path / "none.pem").write_text("no key")
    none = synod("events", "verify", "consensus", "--key", str(tmp_path / "none.pem"))
    assert none.exit_code == Exit.REFUSED
    assert "none.pem holds no public key" in none.stderr


def test_kept_checkpoints_are_compared_by_the_service(synod: Command, attested: FakeSystem, tmp_path: Path) -> None:
    kept = tmp_path / "kept.jsonl"
    lines = [json.dumps(as_dict(signed(log, position))) for log in ("consensus", "cost-ledger") for position in (9, 3)]
    kept.write_text("\n".join(lines) + "\n")
    assert synod("events", "verify", "consensus", "--checkpoints", str(kept)).exit_code == Exit.DONE
    (request,) = attested.requests("Verify")
    assert [(each.log, each.position) for each in request.witnessed] == [("consensus", 3), ("consensus", 9)]
    assert request.witnessed[1] == signed("consensus", 9)


def test_a_kept_checkpoint_of_another_key_is_not_passed_on(
    synod: Command, attested: FakeSystem, tmp_path: Path, data: Path
) -> None:
    export_key(data / "keys" / "consensus.checkpoint.pub.pem")
    (tmp_path / "kept").write_text(json.dumps(as_dict(signed("consensus", 3, Ed25519PrivateKey.generate()))))
    refused = synod("events", "verify", "consensus", "--checkpoints", str(tmp_path / "kept"), "--json")
    assert refused.exit_code == Exit.NOT_TRUE
    found = json.loads(refused.stdout)["consensus"]
    assert (found["ok"], found["broken_position"]) == (False, "3")
    assert "the kept checkpoint is not of this log: it is signed by key" in found["reason"]
    assert not attested.requests("Verify")


@pytest.mark.parametrize("text", ['{"log": "a"', '{"log": "a", "position": "x"}', "[]", "{}"])
def test_a_file_that_holds_no_checkpoints_is_refused(
    synod: Command, attested: FakeSystem, tmp_path: Path, text: str
) -> None:
    (tmp_path / "kept").write_text(f"\n{text}\n")
    refused = synod("events", "verify", "consensus", "--checkpoints", str(tmp_path / "kept"))
    assert refused.exit_code == Exit.REFUSED
    assert "line 2 of" in refused.stderr


def test_of_very_many_kept_checkpoints_the_first_the_last_and_some_between_are_compared() -> None:
    kept = [log_pb.Checkpoint(position=position) for position in range(1, 5_001)]
    positions = [each.position for each in sampled(kept, 1_000)]
    assert (len(set(positions)), positions[0], positions[-1]) == (1_000, 1, 5_000)
    assert positions == sorted(positions)
    assert sampled(kept[:3], 1_000) == kept[:3]


def test_checkpoints_are_printed_a_line_each(synod: Command, fakes: FakeSystem) -> None:
    page = [log_pb.Checkpoint(log="consensus", position=position) for position in (5, 9)]
    last = log_pb.ListCheckpointsResponse()
    fakes.answer("consensus", "ListCheckpoints", log_pb.ListCheckpointsResponse(checkpoints=page), last)
    lines = synod("events", "checkpoints", "consensus").stdout.splitlines()
    assert [json.loads(line)["position"] for line in lines] == ["5", "9"]
    assert [request.after_position for request in fakes.requests("ListCheckpoints")] == [0, 9]


def test_a_proof_comes_with_the_public_key_that_this_machine_has(
    synod: Command, fakes: FakeSystem, data: Path, tmp_path: Path
) -> None:
    exported = export_key(data / "keys" / "consensus.checkpoint.pub.pem").read_bytes()
    answer = log_pb.GetInclusionProofResponse(checkpoint=signed("consensus", 20))
    fakes.answer("consensus", "GetInclusionProof", answer)
    assert (
        "checkpoint.json public.pem; signed"
        in synod("events", "prove", "consensus", "17", "--out", str(tmp_path)).stdout
    )
    assert (tmp_path / "public.pem").read_bytes() == exported


def test_a_proof_is_written_as_three_files(synod: Command, fakes: FakeSystem, tmp_path: Path) -> None:
    proof = log_pb.InclusionProof(position=17, size=20, path=[b"x" * 32])
    checkpoint = log_pb.Checkpoint(position=20, key_id="abcd")
    answer = log_pb.GetInclusionProofResponse(event=log_pb.Event(position=17), proof=proof, checkpoint=checkpoint)
    fakes.answer("consensus", "GetInclusionProof", answer)
    assert "signed by key abcd" in synod("events", "prove", "consensus", "17", "--out", str(tmp_path / "p")).stdout
    written = {
        name: json.loads((tmp_path / "p" / f"{name}.json").read_text()) for name in ("event", "proof", "checkpoint")
    }
    assert not (tmp_path / "p" / "public.pem").exists()
    assert {name: document["position"] for name, document in written.items()} == {
        "event": "17",
        "proof": "17",
        "checkpoint": "20",
    }


def stream_of(*linked: bool) -> list[log_pb.Event]:
    """Events of one stream; which of them name the one before."""
    return [
        log_pb.Event(position=10 * n, version=n, stream="order/1", stream_previous_hash=b"h" * 32 if names else None)
        for n, names in enumerate(linked, 1)
    ]


@pytest.mark.parametrize(
    ("linked", "proven"),
    [((True, True, True), [30]), ((False, True, True), [30]), ((True, False, False), [10, 20, 30])],
)
def test_a_stream_is_written_with_the_proofs_of_what_no_later_event_names(
    synod: Command, fakes: FakeSystem, tmp_path: Path, linked: tuple[bool, ...], proven: list[int]
) -> None:
    events = stream_of(*linked)
    pages = [log_pb.ExportStreamResponse(events=page) for page in (events[:2], events[2:], [])]
    fakes.answer("consensus", "ExportStream", *pages)
    checkpoint = log_pb.Checkpoint(position=40, key_id="abcd")
    answer = log_pb.GetInclusionProofResponse(proof=log_pb.InclusionProof(size=40), checkpoint=checkpoint)
    fakes.answer("consensus", "GetInclusionProof", answer)
    told = synod("events", "prove", "consensus", "--stream", "order/1", "--out", str(tmp_path)).stdout
    assert "stream.json proofs.json; signed by key abcd" in told
    assert [request.after_version for request in fakes.requests("ExportStream")] == [0, 2, 3]
    assert [request.position for request in fakes.requests("GetInclusionProof")] == proven
    assert [event["version"] for event in json.loads((tmp_path / "stream.json").read_text())] == ["1", "2", "3"]
    proofs = json.loads((tmp_path / "proofs.json").read_text())
    assert [sorted(proof) for proof in proofs] == [["checkpoint", "proof"]] * len(proven)


def test_one_stream_is_verified_by_its_own_chain(synod: Command, fakes: FakeSystem) -> None:
    found = [
        log_pb.VerifyStreamResponse(ok=True, events=3, attested=True),
        log_pb.VerifyStreamResponse(ok=True, events=3),
        log_pb.VerifyStreamResponse(events=1, broken_version=2, reason="hash differs"),
    ]
    fakes.answer("consensus", "VerifyStream", *found)
    said = [synod("events", "verify", "consensus", "--stream", "order/1") for _ in found]
    assert [each.exit_code for each in said] == [Exit.DONE, Exit.DONE, Exit.NOT_TRUE]
    assert [each.stdout.strip() for each in said] == [
        "order/1: 3 events hold, attested to by the newest checkpoint",
        "order/1: 3 events hold, not yet attested to by a checkpoint",
        "order/1: BROKEN at version 2: hash differs",
    ]
    assert json.loads(synod("events", "verify", "consensus", "--stream", "order/1", "--json").stdout)["events"] == "1"
    assert {request.stream for request in fakes.requests("VerifyStream")} == {"order/1"}


def test_a_person_is_erased_in_every_service_that_holds_personal_data(synod: Command, fakes: FakeSystem) -> None:
    for service in SERVICES:
        fakes.answer(service, "EraseSubject", Fault(grpc.StatusCode.FAILED_PRECONDITION, "no key", "NOT_CONFIGURED"))
    done = log_pb.EraseSubjectResponse(position=9, key_destroyed=True, views_rebuilt=["emails"])
    fakes.answer("consensus", "EraseSubject", done)
    erased = json.loads(synod("erase", "person-1", "--reason", "asked", "--json").stdout)
    assert erased == [
        {"service": "consensus", "key": "destroyed", "snapshots_dropped": 0, "views_rebuilt": "emails", "position": 9}
    ]
    assert {request.data_subject for request in fakes.requests("EraseSubject")} == {"person-1"}


def test_erasures_that_have_not_ended_are_listed(synod: Command, fakes: FakeSystem) -> None:
    for service in SERVICES:
        fakes.answer(service, "ListErasures", log_pb.ListErasuresResponse())
    pending = log_pb.Erasure(tenant="local", data_subject="person-1", actor="usr_1", reason="asked")
    pending.began_at.FromJsonString("2026-11-21T12:00:00Z")
    fakes.answer("consensus", "ListErasures", log_pb.ListErasuresResponse(erasures=[pending]))
    assert json.loads(synod("erasures", "--json").stdout) == [
        {
            "service": "consensus",
            "subject": "person-1",
            "actor": "usr_1",
            "reason": "asked",
            "began_at": "2026-11-21T12:00:00Z",
        }
    ]


def test_an_erasure_that_is_refused_is_not_passed_over(synod: Command, fakes: FakeSystem) -> None:
    fakes.answer("consensus", "EraseSubject", Fault(grpc.StatusCode.PERMISSION_DENIED, "not you", "PERMISSION_DENIED"))
    assert synod("erase", "person-1", "--reason", "asked", "--service", "consensus").exit_code == Exit.NOT_ALLOWED


def test_events_are_read_with_a_filter_and_printed_whole(synod: Command, fakes: FakeSystem) -> None:
    event = log_pb.Event(position=3, stream="run/run_1", version=2, type="RunStarted", data=b'{"input": "[1]"}')
    fakes.answer("agent-runtime", "Read", log_pb.ReadResponse(events=[event], head_position=9))
    shown = synod("events", "read", "agent-runtime", "--type", "RunStarted", "--run", "run_1", "--after", "2")
    assert "RunStarted run/run_1#2" in shown.stdout
    assert '{"input": "[1]"}' in shown.stdout
    assert shown.stderr == "1 events; the log's head is at 9\n"
    (line,) = synod("events", "read", "agent-runtime", "--json").stdout.splitlines()
    assert json.loads(line)["data"] == {"input": "[1]"}
    request = fakes.requests("Read")[0]
    assert (request.after_position, list(request.filter.types), request.filter.correlation_id) == (
        2,
        ["RunStarted"],
        "run_1",
    )


def test_who_asks_for_a_type_that_a_service_does_not_have_is_told_its_types(synod: Command, fakes: FakeSystem) -> None:
    fakes.answer("agent-runtime", "Read", log_pb.ReadResponse(head_position=9))
    told = synod("events", "read", "agent-runtime", "--type", "RunStart[ed", "--type", "RunStarted", "--json")
    assert told.exit_code == Exit.DONE  # a log may have other types than are known here
    assert told.stderr.startswith("RunStart[ed: none of the types of agent-runtime, which are ")
    assert ", RunStarted" in told.stderr
    assert synod("events", "read", "agent-runtime", "--type", "RunStarted", "--json").stderr == ""


def test_views_are_compared_with_what_their_events_say(synod: Command, fakes: FakeSystem) -> None:
    fakes.answer(
        "cost-ledger", "ListViews", log_pb.ListViewsResponse(views=[log_pb.View(name="spend", source="cost-ledger")])
    )
    fakes.answer("cost-ledger", "VerifyView", log_pb.VerifyViewResponse(name="spend", differing_tables=["lines"]))
    fakes.answer("cost-ledger", "RebuildView", log_pb.RebuildViewResponse(events_folded=12))
    differs = synod("views", "verify", "cost-ledger")
    assert differs.exit_code == Exit.NOT_TRUE
    assert "DIFFERS: lines" in differs.stdout
    assert "cost-ledger/spend: 12 events" in synod("views", "rebuild", "cost-ledger", "spend").stdout


def a_page(*events: log_pb.Event) -> log_pb.ReadResponse:
    return log_pb.ReadResponse(events=events, head_position=9, next_after_position=9)


def test_a_run_is_told_over_all_services_each_event_after_its_cause(synod: Command, fakes: FakeSystem) -> None:
    for service in SERVICES:
        fakes.answer(service, "Read", a_page())
    asked = log_pb.Event(position=4, id="a", type="ToolCallIntended", data=b"{}", recorded_at=Timestamp(seconds=9))
    settled = log_pb.Event(position=8, type="CostSettled", data=b"{}", causation_id="a")
    fakes.answer("agent-runtime", "Read", a_page(asked))
    fakes.answer("cost-ledger", "Read", a_page(settled))
    moments = ["--since", "2026-11-01T12:00", "--as-of", "2026-11-02"]
    told = synod("events", "read", "--correlation", "run_1", "--json", *moments)
    assert [(line["service"], line["type"]) for line in map(json.loads, told.stdout.splitlines())] == [
        ("agent-runtime", "ToolCallIntended"),
        ("cost-ledger", "CostSettled"),
    ]
    (request,) = fakes.requests("Read", "consensus")
    assert request.filter.correlation_id == "run_1"
    assert request.filter.since.ToJsonString() == "2026-11-01T12:00:00Z"
    assert request.as_of.ToJsonString() == "2026-11-02T00:00:00Z"


def test_that_there_is_no_such_run_is_said(synod: Command, fakes: FakeSystem) -> None:
    for service in SERVICES:
        fakes.answer(service, "Read", a_page())
    told = synod("events", "read", "--run", "nope")
    assert (told.exit_code, told.stdout) == (Exit.NOT_FOUND, "")
    assert "no service has an event of run 'nope'; `synod runs` shows" in told.stderr
    narrowed = synod("events", "read", "--run", "nope", "--type", "RunStarted")
    assert narrowed.exit_code == Exit.NOT_FOUND
    assert "no service has such an event of run 'nope'; ask for less" in narrowed.stderr


def test_that_a_list_is_empty_is_said_beside_it(synod: Command, fakes: FakeSystem) -> None:
    fakes.answer("cost-ledger", "ListParkedEvents", log_pb.ListParkedEventsResponse())
    listed = synod("views", "parked", "cost-ledger")
    assert listed.exit_code == Exit.DONE
    assert listed.stderr == "there are none\n"
    assert synod("views", "parked", "cost-ledger", "--json").stderr == ""


def test_events_of_everything_are_not_read_by_mistake(synod: Command) -> None:
    refused = synod("events", "read")
    assert refused.exit_code == 2
    assert "name a service, or a run" in refused.stderr
    assert synod("events", "read", "--run", "run_1", "--since", "yesterday").exit_code == 2
    backwards = synod("events", "read", "consensus", "--since", "2026-12-01", "--until", "2026-11-01")
    assert backwards.exit_code == Exit.USAGE
    told = " ".join(backwards.stderr.replace("│", " ").split())
    assert "2026-11-01T00:00:00+00:00 is not after --since 2026-12-01T00:00:00+00:00" in told


def test_a_view_is_rolled_back_and_its_parked_events_are_redriven(synod: Command, fakes: FakeSystem) -> None:
    fakes.answer("cost-ledger", "RollbackView", log_pb.RollbackViewResponse(view=log_pb.View(position=40)))
    fakes.answer("cost-ledger", "RedriveParkedEvent", log_pb.RedriveParkedEventResponse())
    parked = log_pb.ParkedEvent(view="spend", position=7, type="CostSettled", error="ValueError: no")
    fakes.answer("cost-ledger", "ListParkedEvents", log_pb.ListParkedEventsResponse(parked=[parked]))
    assert "rolled back, live at 40" in synod("views", "rollback", "cost-ledger", "spend").stdout
    assert "ValueError: no" in synod("views", "parked", "cost-ledger").stdout
    assert "event 7 folded" in synod("views", "redrive", "cost-ledger", "spend", "7").stdout
    assert "event 7 skipped" in synod("views", "redrive", "cost-ledger", "spend", "7", "--skip").stdout
    assert [(r.view, r.position, r.skip) for r in fakes.requests("RedriveParkedEvent")] == [
        ("spend", 7, False),
        ("spend", 7, True),
    ]


# As a process


def test_ctrl_c_ends_a_tail_cleanly_with_130(fakes: FakeSystem, data: Path) -> None:
    event = log_pb.Event(position=1, stream="run/run_1", type="RunStarted", data=b"{}")
    fakes.answer("agent-runtime", "Subscribe", lambda _: [event])
    command = [*HEARING_SIGINT, SYNOD, "events", "tail", "agent-runtime", "--after", "0", "--json"]
    environment = {"SYNOD_DATA": str(data), "PATH": "/usr/bin:/bin", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as tail:
        assert tail.stdout is not None
        assert json.loads(tail.stdout.readline())["type"] == "RunStarted"
        tail.send_signal(signal.SIGINT)
        _, problems = tail.communicate(timeout=WAIT_S)
    assert (tail.returncode, problems) == (Exit.INTERRUPTED, "")


def test_ctrl_c_ends_a_chat_that_waits_for_its_person(fakes: FakeSystem, data: Path) -> None:
    fakes.answer("agent-runtime", "CreateConversation", runtime_pb.Conversation(id="cnv_1"))
    environment = {"SYNOD_DATA": str(data), "PATH": "/usr/bin:/bin", "PYTHONUNBUFFERED": "1"}
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*HEARING_SIGINT, SYNOD, "chat", "helper"], env=environment, text=True, **pipes) as chat:
        assert chat.stdout is not None
        assert chat.stdout.read(len("you ")) == "you "
        chat.send_signal(signal.SIGINT)
        _, problems = chat.communicate(timeout=WAIT_S)
    assert (chat.returncode, problems) == (Exit.INTERRUPTED, "")


def test_completion_is_there_for_shells_and_knows_the_services() -> None:
    environment = {
        "_SYNOD_COMPLETE": "complete_bash",
        "COMP_WORDS": "synod events read co",
        "COMP_CWORD": "3",
        "PATH": "/usr/bin:/bin",
    }
    found = subprocess.run([SYNOD], env=environment, capture_output=True, text=True, timeout=30, check=False)
    assert found.stdout.split() == ["cost-ledger", "consensus"]

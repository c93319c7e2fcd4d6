"""Who may say, hear and ask what on NATS is written down here a second time, subject by subject. test_permissions.py tries
it on servers; this finds also what nobody thought of trying."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from launcher.bus import account_of, authorization
from launcher.keys import ADMINISTRATOR, CLIENT, NATS_CLIENTS, OBSERVER
from launcher.layout import SERVICES

NAMES = tuple(service.name for service in SERVICES)
OTHERS = (*NAMES, OBSERVER, CLIENT)
"""Everybody but the administrator."""
HUB = "SYNOD"
API = "$JS.API"
TOKENS = "synod.*.tok.*"


def stream(service: str) -> str:
    return f"EVT_{service.replace('-', '_').upper()}"


def of_a_service(name: str) -> set[str]:
    """What it says into its own stream, and how it sees whether that is there."""
    return {
        f"synod.*.evt.{name}.>",
        f"synod.sys.{name}.checkpoint",
        f"{API}.INFO",
        f"{API}.STREAM.INFO.{stream(name)}",
        f"{API}.STREAM.MSG.GET.{stream(name)}",
    }


def reading(*streams: str) -> set[str]:
    consumers = {f"CONSUMER.{verb}.{name}.*" for name in streams for verb in ("CREATE", "INFO", "DELETE", "MSG.NEXT")}
    others = {f"{verb}.{name}" for name in streams for verb in ("STREAM.INFO", "DIRECT.GET", "CONSUMER.CREATE")}
    return {f"{API}.{each}" for each in consumers | others}


def observing(*streams: str) -> set[str]:
    """As any client of JetStream reads: by filter, by subject, with flow control."""
    more = {f"{API}.CONSUMER.CREATE.{name}.*.>" for name in streams} | {
        f"{API}.DIRECT.GET.{name}.>" for name in streams
    }
    return reading(*streams) | more | {f"$JS.FC.{name}.>" for name in streams}


COMMANDS = {
    *("synod.*.cmd.agent-runtime.>", "synod.*.dlq.agent-runtime", "$JS.ACK.CMD_AGENT_RUNTIME.>"),
    *(f"{API}.STREAM.INFO.{queue}_AGENT_RUNTIME" for queue in ("CMD", "DLQ")),
    *(f"{API}.CONSUMER.{verb}.CMD_AGENT_RUNTIME.agent-runtime-run" for verb in ("INFO", "MSG.NEXT")),
    *(f"{API}.STREAM.MSG.{verb}.DLQ_AGENT_RUNTIME" for verb in ("GET", "DELETE")),
}
AGENTS_OUTSIDE = {
    *("synod.*.cmd.agents.*", "synod.*.ans.agents.*", "$JS.ACK.CMD_AGENTS.>"),
    *(f"{API}.STREAM.INFO.{name}_AGENTS" for name in ("CMD", "ANS")),
    *(f"{API}.DIRECT.GET.ANS_AGENTS{rest}" for rest in ("", ".>")),
    *(f"{API}.CONSUMER.{verb}.CMD_AGENTS.>" for verb in ("CREATE", "DURABLE.CREATE", "INFO", "MSG.NEXT")),
}
ASKS: dict[str, set[str]] = {
    "agent-registry": of_a_service("agent-registry") | reading("EVT_AGENT_RUNTIME", "EVT_TOOL_EXECUTOR"),
    "cost-ledger": of_a_service("cost-ledger") | reading("EVT_LLM_GATEWAY", "EVT_TOOL_EXECUTOR"),
    "consensus": of_a_service("consensus"),
    "tool-executor": of_a_service("tool-executor"),
    "llm-gateway": of_a_service("llm-gateway"),
    "agent-runtime": of_a_service("agent-runtime") | reading("EVT_CONSENSUS") | COMMANDS,
    "ws-gateway": of_a_service("ws-gateway") | reading(*map(stream, NAMES)) | {f"{API}.STREAM.LIST"},
    OBSERVER: {f"{API}.INFO", f"{API}.STREAM.NAMES", f"{API}.STREAM.LIST"}
    | observing(*map(stream, NAMES), "CHECKPOINTS"),
    CLIENT: AGENTS_OUTSIDE,
}
"""The subjects of the hub that each reaches, of architecture.md; answers come back to who asked."""
SAYS = {"agent-runtime": {TOKENS}}
"""In its own account."""
READS = {
    "agent-registry": {"agent-runtime", "tool-executor"},
    "cost-ledger": {"llm-gateway", "tool-executor"},
    "agent-runtime": {"consensus"},
    "ws-gateway": set(NAMES),
}
"""Of whom each may ask what streams no longer hold."""
ANSWERS = {**{name: {"_R_.>"} for name in NAMES}, "ws-gateway": {"_R_.>", "_INBOX.>"}}
"""To those of other accounts, and to itself."""
HEARS = {
    **{name: {"_INBOX.>", f"synod.sys.{name}.past"} for name in NAMES},
    "agent-runtime": {"_INBOX.>", "synod.sys.agent-runtime.past", TOKENS},
    OBSERVER: {"_INBOX.>", TOKENS},
    CLIENT: {"_INBOX_client.>", "synod.*.ans.agents.*"},
}
LED_TO: dict[str, set[tuple[str, str]]] = {OBSERVER: {(HUB, "_INBOX.>"), (account_of("agent-runtime"), TOKENS)}}
"""What is said in another account and heard in this one without asking."""


@pytest.fixture
def accounts() -> dict[str, Any]:
    passwords = dict.fromkeys((*NAMES, *NATS_CLIENTS), "password")
    who_may_what = json.loads(json.dumps(authorization(SERVICES, passwords)))
    assert set(who_may_what) == {"accounts"}
    found: dict[str, Any] = who_may_what["accounts"]
    return found


def here(subject: str) -> str:
    """Where a subject of the hub is in another account."""
    return subject.replace(API, f"{HUB}.API")


def past(of: set[str]) -> set[str]:
    return {f"synod.sys.{name}.past" for name in of}


def user(name: str, publish: set[str], subscribe: set[str]) -> dict[str, Any]:
    permissions = {"publish": {"allow": publish}, "subscribe": {"allow": subscribe}}
    return {"user": name, "password": "password", "permissions": permissions}


def found_users(account: dict[str, Any]) -> list[dict[str, Any]]:
    """With sets in place of lists, for the order of subjects means nothing."""
    for each in account["users"]:
        for verb in each.get("permissions", {}).values():
            verb["allow"] = set(verb["allow"])
    users: list[dict[str, Any]] = account["users"]
    return users


def test_everybody_has_an_account_and_nobody_else(accounts: dict[str, Any]) -> None:
    assert set(accounts) == {HUB, *map(account_of, OTHERS)}
    assert accounts[HUB].keys() == {"jetstream", "users", "exports"}
    assert all(accounts[account_of(name)].keys() == {"users", "mappings", "imports", "exports"} for name in OTHERS)


@pytest.mark.parametrize("name", OTHERS)
def test_a_user_says_and_hears_what_is_written_down_and_is_alone_in_its_account(
    accounts: dict[str, Any], name: str
) -> None:
    says = {here(subject) for subject in ASKS[name]} | SAYS.get(name, set()) | past(READS.get(name, set()))
    says |= ANSWERS.get(name, set())
    assert found_users(accounts[account_of(name)]) == [user(name, says, HEARS[name])]


def test_the_administrator_asks_jetstream_and_says_and_hears_nothing_else(accounts: dict[str, Any]) -> None:
    assert found_users(accounts[HUB]) == [user(ADMINISTRATOR, {f"{API}.>"}, {"_INBOX_administrator.>"})]


@pytest.mark.parametrize("name", OTHERS)
def test_an_account_is_led_to_what_is_written_down_and_to_nothing_else(accounts: dict[str, Any], name: str) -> None:
    account = accounts[account_of(name)]
    services = {each["service"]["subject"]: each for each in account["imports"] if "service" in each}
    asked = {subject: {"service": {"account": HUB, "subject": subject}, "to": here(subject)} for subject in ASKS[name]}
    for other in READS.get(name, set()) - {name}:
        (subject,) = past({other})
        asked[subject] = {"service": {"account": account_of(other), "subject": subject}}
    assert services == asked
    streams = [each for each in account["imports"] if "service" not in each]
    led_to = [{"stream": {"account": other, "subject": subject}} for other, subject in sorted(LED_TO.get(name, ()))]
    assert sorted(streams, key=str) == sorted(led_to, key=str)
    assert account["mappings"] == {f"{API}.>": f"{HUB}.API.>"}


def test_the_hub_lets_in_those_who_ask_and_nobody_else(accounts: dict[str, Any]) -> None:
    asked = {subject: {account_of(name) for name in OTHERS if subject in ASKS[name]} for subject in everything()}
    services = [each for each in accounts[HUB]["exports"] if "service" in each]
    assert all(each.keys() == {"service", "response_type", "accounts"} for each in services)
    assert {each["service"]: set(each["accounts"]) for each in services} == asked
    assert len(services) == len(asked)


def everything() -> Iterator[str]:
    for subjects in ASKS.values():
        yield from subjects


@pytest.mark.parametrize("account", [HUB, *map(account_of, OTHERS)])
def test_what_an_account_says_is_heard_by_those_who_are_led_to_it_and_by_nobody_else(
    accounts: dict[str, Any], account: str
) -> None:
    offered = [each for each in accounts[account]["exports"] if "service" not in each]
    listeners = {(subject, account_of(name)) for name, heard in LED_TO.items() for a, subject in heard if a == account}
    assert offered == [{"stream": subject, "accounts": [listener]} for subject, listener in sorted(listeners)]


@pytest.mark.parametrize("name", OTHERS)
def test_an_account_answers_for_its_past_those_who_read_its_stream_and_nobody_else(
    accounts: dict[str, Any], name: str
) -> None:
    answered = [each for each in accounts[account_of(name)]["exports"] if "service" in each]
    asking = {account_of(other) for other, read in READS.items() if name in read and other != name}
    assert [{**each, "accounts": set(each["accounts"])} for each in answered] == [
        {"service": subject, "response_type": "stream", "accounts": asking} for subject in past({name}) if asking
    ]


@pytest.mark.parametrize("number", range(1, len(SERVICES) + 1))
def test_a_system_of_some_services_names_no_account_that_it_does_not_have(number: int) -> None:
    some = SERVICES[:number]
    passwords = dict.fromkeys((*(service.name for service in some), *NATS_CLIENTS), "password")
    found: dict[str, Any] = json.loads(json.dumps(authorization(some, passwords)))["accounts"]
    named = {
        each.get("service", each.get("stream"))["account"]
        for account in found.values()
        for each in account.get("imports", ())
    }
    led = {name for account in found.values() for each in account["exports"] for name in each["accounts"]}
    assert named | led <= set(found)

"""define, agents, tools, models: what there is."""

from pathlib import Path
from typing import Annotated

import typer
from synod.agent_registry.v1.agent_registry_pb2 import AgentHealth, AgentState
from synod.tool_executor.v1.tool_executor_pb2 import EffectClass

from synod_client.cli.hints import tell_of_nobody
from synod_client.cli.output import console, enum_name, moment, print_messages, print_table
from synod_client.cli.session import AsJson, Data, run
from synod_client.client import Synod

tools_app = typer.Typer(help="The catalogue of tools, and who may use them.", no_args_is_help=True)


def define(
    files: Annotated[list[Path], typer.Argument(help="YAML files of agents and teams.", exists=True, dir_okay=False)],
    check: Annotated[bool, typer.Option("--check", help="Validate only; register nothing.")] = False,
    as_json: AsJson = False,
    data: Data = None,
) -> None:
    """Register agents and teams from YAML. The same content makes no new version.

    Example: synod define deploy/examples/model-scout/agents.yaml
    """

    # One request: the documents of all files may name each other.
    text = "\n---\n".join(_text(path) for path in files)

    async def command(synod: Synod) -> None:
        found = await synod.define(text, validate_only=check)
        if as_json:
            return print_messages(found)
        rows = [
            (item.kind, item.name, item.version, item.digest[:12], "new" if item.created else "unchanged")
            for item in found
        ]
        return print_table("", ("kind", "name", "version>", "digest", ""), rows)

    run(command, data)


def agents(
    capability: Annotated[
        list[str] | None, typer.Option("--can", help="Only agents with this capability; repeatable.")
    ] = None,
    as_json: AsJson = False,
    data: Data = None,
) -> None:
    """List agents with their state, health and load.

    Example: synod agents --can sql
    """

    async def command(synod: Synod) -> None:
        found = await (synod.discover(*capability, limit=100) if capability else synod.agents())
        if as_json:
            return print_messages(found)
        rows = [
            (
                agent.name,
                f"{agent.definition_name}@{agent.definition_version}" if agent.definition_name else "outside",
                enum_name(AgentState.Name(agent.state), "AGENT_STATE_"),
                enum_name(AgentHealth.Name(agent.health), "AGENT_HEALTH_"),
                agent.busy,
                agent.runs_completed,
                agent.runs_failed,
                ", ".join(agent.capabilities),
            )
            for agent in found
        ]
        columns = ("agent", "definition", "state", "health", "busy>", "done>", "failed>", "capabilities")
        return print_table("", columns, rows)

    run(command, data)


def ask(
    agent: Annotated[str, typer.Argument(help="Name of an agent that lives in a process outside.")],
    text: Annotated[str, typer.Argument(help="The task.")],
    timeout_s: Annotated[float, typer.Option("--timeout", help="Seconds to wait for the answer.", min=0.1)] = 60.0,
    task_id: Annotated[str, typer.Option("--task", help="Wait on for this task instead of a new one.")] = "",
    data: Data = None,
) -> None:
    """Ask an agent outside and print its answer. Exits with 1 when it cannot do the task.

    Example: synod ask translator "good day"
    """

    async def command(synod: Synod) -> None:
        answer = await synod.ask(agent, text, timeout_s=timeout_s, task_id=task_id)
        console.print(answer, markup=False, highlight=False, soft_wrap=True)

    run(command, data)


def models(as_json: AsJson = False, data: Data = None) -> None:
    """List the models that can be called, and why others cannot.

    Example: synod models
    """

    async def command(synod: Synod) -> None:
        found = await synod.models()
        if as_json:
            return print_messages(found)
        rows = [
            (
                model.id,
                model.dialect,
                model.context_tokens or "",
                "simulator" if model.simulated else "",
                "available" if model.available else model.unavailable_reason,
            )
            for model in found
        ]
        return print_table("", ("model", "dialect", "context>", "", "state"), rows)

    run(command, data)


@tools_app.command("list")
def tools_list(as_json: AsJson = False, data: Data = None) -> None:
    """List the tools with their effect class and sandbox level.

    Example: synod tools list
    """

    async def command(synod: Synod) -> None:
        found = await synod.tools()
        if as_json:
            return print_messages(found.tools)
        rows = [
            (
                tool.name,
                tool.version,
                enum_name(EffectClass.Name(tool.effect), "EFFECT_CLASS_"),
                tool.min_level,
                tool.description.split(". ")[0],
            )
            for tool in found.tools
        ]
        title = f"Best sandbox level here: {found.best_level} {found.level_reason}"
        return print_table(title, ("tool", "version", "effect", "level", "what it does"), rows)

    run(command, data)


@tools_app.command("grant")
def tools_grant(
    agent: Annotated[str, typer.Argument(help="Agent definition, agent id, or '*'.")],
    tool: Annotated[str, typer.Argument(help="Tool name or '*'.")],
    as_json: AsJson = False,
    data: Data = None,
) -> None:
    """Allow an agent to use a tool. Denied is the default.

    Example: synod tools grant analyst sql_query
    """

    async def command(synod: Synod) -> None:
        grant = await synod.grant(agent, tool)
        if agent != "*":
            await tell_of_nobody(synod, agent, "the grant")
        if as_json:
            return print_messages([grant])
        return print_table("", ("grant", "agent", "tool"), [(grant.id, grant.agent, grant.tool)])

    run(command, data)


@tools_app.command("grants")
def tools_grants(
    agent: Annotated[str, typer.Argument(help="Only of this agent.")] = "", as_json: AsJson = False, data: Data = None
) -> None:
    """List the grants.

    Example: synod tools grants analyst
    """

    async def command(synod: Synod) -> None:
        found = await synod.grants(agent)
        if as_json:
            return print_messages(found)
        rows = [(item.id, item.agent, item.tool, moment(item.granted_at), moment(item.revoked_at)) for item in found]
        return print_table("", ("grant", "agent", "tool", "granted", "revoked"), rows)

    run(command, data)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        problem = f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8"
        raise typer.BadParameter(problem, param_hint="FILES") from error

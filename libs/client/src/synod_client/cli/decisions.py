"""propose, vote, proposals: deciding together."""

import json
from typing import Annotated

import typer
from google.protobuf.timestamp_pb2 import Timestamp
from rich.markup import escape
from synod.consensus.v1.consensus_pb2 import (
    DeclareVariableRequest,
    FloatRange,
    Proposal,
    ProposalState,
    ProposeRequest,
    Rule,
    RuleKind,
    Variable,
    VariableChange,
    Voter,
)

from synod_client.cli.output import as_dict, enum_name, print_json, print_table
from synod_client.cli.session import AsJson, Data, run
from synod_client.client import Synod

variables_app = typer.Typer(help="Values that only decided proposals change.", no_args_is_help=True)
RULES = {name.removeprefix("RULE_KIND_").lower(): value for name, value in RuleKind.items() if value}


def known_rule(name: str) -> str:
    if name not in RULES:
        raise typer.BadParameter(f"'{name}' is no rule; rules are {', '.join(RULES)}")
    return name


def _complete_rule(incomplete: str) -> list[str]:
    return [name for name in RULES if name.startswith(incomplete)]


def propose(
    title: Annotated[str, typer.Argument(help="What is to be decided.")],
    voters: Annotated[list[str], typer.Option("--voter", help="Who may vote; repeatable. NAME or NAME=WEIGHT.")],
    rule: Annotated[
        str, typer.Option(help=f"{', '.join(RULES)}.", callback=known_rule, autocompletion=_complete_rule)
    ] = "majority",
    threshold: Annotated[int, typer.Option(help="Weight needed under rule threshold.", min=0, max=2**31 - 1)] = 0,
    options: Annotated[list[str] | None, typer.Option("--option", help="Default: approve, reject.")] = None,
    minutes: Annotated[int, typer.Option(help="Until the deadline.", min=1, max=525_600)] = 10,
    change: Annotated[
        str, typer.Option("--set", help="Variable to set when carried: NAME=JSON, such as rate=0.2.")
    ] = "",
    as_json: AsJson = False,
    data: Data = None,
) -> None:
    """Open a proposal; its electorate is frozen now.

    Example: synod propose "Raise it?" --voter ada --voter ben --set rate=0.2
    """
    electorate = [_voter(text) for text in voters]
    changes = _change(change) if change else None

    async def command(synod: Synod) -> None:
        deadline = Timestamp()
        deadline.GetCurrentTime()
        deadline.seconds += 60 * minutes
        request = ProposeRequest(
            title=title,
            options=options or [],
            electorate=electorate,
            rule=Rule(kind=RuleKind.ValueType(RULES[rule]), threshold=threshold),
            deadline=deadline,
            change=changes,
        )
        _print(await synod.propose(request), as_json)

    run(command, data)


def vote(
    proposal_id: Annotated[str, typer.Argument(help="Id of a proposal.")],
    option: Annotated[str, typer.Argument(help="What to vote for.")],
    voter: Annotated[str, typer.Option("--as", help="Who votes.")],
    reason: Annotated[str, typer.Option(help="Why; kept with the decision.")] = "",
    as_json: AsJson = False,
    data: Data = None,
) -> None:
    """Cast a vote.

    Example: synod vote prp_01k9... approve --as ada --reason "checked"
    """

    async def command(synod: Synod) -> None:
        _print(await synod.vote(proposal_id, voter, option, reason), as_json)

    run(command, data)


def proposals(
    run_id: Annotated[str, typer.Option("--run", help="Only of this run.")] = "",
    as_json: AsJson = False,
    data: Data = None,
) -> None:
    """List proposals.

    Example: synod proposals
    """

    async def command(synod: Synod) -> None:
        found = await synod.proposals(run_id)
        if as_json:
            return print_json([as_dict(item) for item in found])
        rows = [(item.id, item.title, _state(item), item.outcome, _tally(item)) for item in found]
        return print_table("", ("proposal", "title", "state", "outcome", "tally"), rows)

    run(command, data)


@variables_app.command("declare")
def variables_declare(
    name: Annotated[str, typer.Argument(help="a-z, 0-9, '-' and '_'.")],
    value: Annotated[str, typer.Argument(help="First value: a number, or one of the choices.")],
    minimum: Annotated[float, typer.Option("--min", help="Of a number.")] = 0.0,
    maximum: Annotated[float, typer.Option("--max", help="Of a number.")] = 1.0,
    choices: Annotated[list[str] | None, typer.Option("--choice", help="Instead of a number; repeatable.")] = None,
    as_json: AsJson = False,
    data: Data = None,
) -> None:
    """Declare a variable that only decided proposals change.

    Example: synod variables declare rate 0.5 --min 0 --max 1
    """
    request = DeclareVariableRequest(name=name, initial_value_json=json.dumps(value) if choices else value)
    if choices:
        request.choices.options.extend(choices)
    else:
        request.float_range.CopyFrom(FloatRange(min=minimum, max=maximum))

    async def command(synod: Synod) -> None:
        _print_variables([await synod.declare_variable(request)], as_json)

    run(command, data)


@variables_app.command("list")
def variables_list(as_json: AsJson = False, data: Data = None) -> None:
    """List variables with their value and the proposal that set it.

    Example: synod variables list
    """

    async def command(synod: Synod) -> None:
        _print_variables(await synod.variables(), as_json)

    run(command, data)


def _print_variables(found: list[Variable], as_json: bool) -> None:
    if as_json:
        return print_json([as_dict(item) for item in found])
    rows = [(item.name, item.type, item.value_json, item.version, item.proposal_id) for item in found]
    return print_table("", ("variable", "type", "value", "version>", "set by"), rows)


def _voter(text: str) -> Voter:
    name, _, weight = text.partition("=")
    if weight and not weight.isdigit():
        raise typer.BadParameter(f"'{text}' is not NAME or NAME=WEIGHT with a whole number", param_hint="--voter")
    return Voter(id=name, weight=int(weight or 1))


def _change(text: str) -> VariableChange:
    name, _, value = text.partition("=")
    try:
        json.loads(value)
    except ValueError as error:
        raise typer.BadParameter(
            f"'{text}' is not NAME=JSON, such as rate=0.2 or model='\"sim-1\"'", param_hint="--set"
        ) from error
    return VariableChange(variable=name, value_json=value)


def _print(item: Proposal, as_json: bool) -> None:
    if as_json:
        return print_json(as_dict(item))
    print_table(
        escape(f"{item.id}  {item.title}"), ("state", "outcome", "tally"), [(_state(item), item.outcome, _tally(item))]
    )
    if item.ballots:
        rows = [(ballot.voter_id, ballot.option, ballot.weight, ballot.reason) for ballot in item.ballots]
        print_table("", ("voter", "vote", "weight>", "reason"), rows)
    return None


def _state(item: Proposal) -> str:
    return enum_name(ProposalState.Name(item.state), "PROPOSAL_STATE_")


def _tally(item: Proposal) -> str:
    return ", ".join(f"{entry.option} {entry.weight}" for entry in item.tally)

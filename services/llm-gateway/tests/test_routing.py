"""What is eligible, and in which order."""

import random
from dataclasses import replace

import pytest
from llm_gateway.balancing import Load, Strategy
from llm_gateway.catalogue import Target
from llm_gateway.domain import Message, ModelRequest, Text
from llm_gateway.errors import NoEligibleModel
from llm_gateway.providers.testing import FakeProvider
from llm_gateway.routing import ANY, Choice, Considered, Offer, Policy, affinity_of, choose

PROVIDER = FakeProvider()


def offer(id: str, deployment: str = "", *, region: str = "", **facts: object) -> Offer:
    target = Target(id, id.partition("/")[2], PROVIDER, deployment=deployment, region=region)
    return replace(Offer(target), **facts)  # type: ignore[arg-type]


def chosen(offers: list[Offer], policy: Policy = ANY, balancing: Strategy = "order") -> Choice:
    return choose(offers, policy, balancing, b"key", random.Random(1).random)


def names(choice: Choice) -> list[str]:
    return [f"{target.id}@{target.deployment}" for target in choice.targets]


def test_models_keep_the_callers_order_and_deployments_stand_together() -> None:
    offers = [offer("p/a", "1"), offer("p/a", "2"), offer("q/b", "3")]
    assert names(chosen(offers, balancing="p2c"))[2] == "q/b@3"
    assert names(chosen(offers)) == ["p/a@1", "p/a@2", "q/b@3"]


def test_a_deployment_that_is_left_alone_comes_last_of_its_model() -> None:
    offers = [offer("p/a", "1", closed=True), offer("p/a", "2"), offer("q/b", "3")]
    assert names(chosen(offers)) == ["p/a@2", "p/a@1", "q/b@3"]


@pytest.mark.parametrize(
    ("policy", "verdict"),
    [
        (Policy(required_capabilities=("tools", "images")), "has no images"),
        (Policy(regions=("eu",)), "is in region us"),
        (Policy(max_cost_nano=10), "may cost 11 nano-USD"),
        (Policy(max_first_content_s=0.5), "took 0.90 s to its first content"),
    ],
)
def test_what_does_not_comply_is_left_out_and_the_choice_says_why(policy: Policy, verdict: str) -> None:
    facts = {"capabilities": frozenset({"tools"}), "cost_nano": 11, "load": Load(0, 0.9)}
    bad = offer("p/bad", region="us", **facts)
    good = offer("p/good", region="eu", capabilities=frozenset({"tools", "images"}), cost_nano=10, load=Load(0, 0.4))
    choice = chosen([bad, good], policy)
    assert names(choice) == ["p/good@"]
    assert choice.considered == (Considered("p/bad", "", verdict), Considered("p/good", "", "eligible"))
    with pytest.raises(NoEligibleModel, match=verdict):
        chosen([bad], policy)


def test_the_cheapest_is_asked_first_and_what_has_no_price_not_at_all() -> None:
    offers = [offer("p/dear", cost_nano=30), offer("p/unpriced"), offer("p/cheap", cost_nano=10)]
    assert names(chosen(offers, Policy(cheapest=True))) == ["p/cheap@", "p/dear@"]


def test_deployments_of_which_nothing_is_known_comply_with_a_latency() -> None:
    assert names(chosen([offer("p/new")], Policy(max_first_content_s=0.1))) == ["p/new@"]


def test_a_caller_may_choose_the_balancing() -> None:
    offers = [offer("p/a", "1", load=Load(5, 0.0)), offer("p/a", "2", load=Load(1, 0.0))]
    assert names(chosen(offers, Policy(balancing="least_in_flight"))) == ["p/a@2", "p/a@1"]


def test_the_same_prompt_has_affinity_within_a_tenant_and_never_across() -> None:
    def request(text: str) -> ModelRequest:
        return ModelRequest("", (Message("system", (Text(text),)), Message("user", (Text(str(random.random())),))))

    assert affinity_of("t", "", request("x")) == affinity_of("t", "", request("x"))
    assert affinity_of("t", "", request("x")) != affinity_of("t", "", request("y"))
    assert affinity_of("t", "", request("x")) != affinity_of("u", "", request("x"))
    assert affinity_of("t", "c", request("x")) == affinity_of("t", "c", request("y"))
    assert affinity_of("t", "c", request("x")) != affinity_of("u", "c", request("x"))

"""Who reaches whom, by NetworkPolicies: a connection is made if what the one may send and the other may receive allow it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .kustomize import Manifest

Labels = Mapping[str, str]
WORKLOADS = {"Deployment", "StatefulSet", "Job"}


def pods(manifests: Sequence[Manifest]) -> dict[str, Labels]:
    """The labels of the pods of each workload, by its name."""
    return {
        each["metadata"]["name"]: each["spec"]["template"]["metadata"]["labels"]
        for each in manifests
        if each["kind"] in WORKLOADS
    }


def policies(manifests: Sequence[Manifest]) -> list[Manifest]:
    return [each["spec"] for each in manifests if each["kind"] == "NetworkPolicy"]


def neighbours(manifests: Sequence[Manifest], name: str, labels: Mapping[str, Labels]) -> set[str]:
    """The workloads that this one can connect to, on any port."""
    rules = policies(manifests)
    return {
        other
        for other in labels
        if other != name
        and _allows(rules, "egress", labels[name], labels[other])
        and _allows(rules, "ingress", labels[other], labels[name])
    }


def strangers(manifests: Sequence[Manifest], direction: str, labels: Labels) -> list[Manifest]:
    """The rules by which a pod receives from (`ingress`) or sends to (`egress`) what is not a pod of its namespace."""
    found = []
    for rule in _rules(policies(manifests), direction, labels):
        peers = rule.get(_side(direction))
        if not peers or any("namespaceSelector" in peer or "ipBlock" in peer for peer in peers):
            found.append(rule)
    return found


def is_isolated(manifests: Sequence[Manifest], direction: str, labels: Labels) -> bool:
    """Whether what no rule allows is forbidden to the pod."""
    return any(
        direction.capitalize() in policy["policyTypes"] and selects(policy["podSelector"], labels)
        for policy in policies(manifests)
    )


def selects(selector: Manifest, labels: Labels) -> bool:
    """An empty selector selects all. Raises ValueError for an operator that is not known here."""
    for expression in selector.get("matchExpressions", ()):
        if expression["operator"] != "In":
            raise ValueError(f"operator {expression['operator']}")
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return selector.get("matchLabels", {}).items() <= labels.items()


def _allows(rules: Sequence[Manifest], direction: str, own: Labels, other: Labels) -> bool:
    return any(_is_for(rule.get(_side(direction)), other) for rule in _rules(rules, direction, own))


def _is_for(peers: Any, other: Labels) -> bool:
    """A rule without peers is for everybody."""
    if not peers:
        return True
    return any(
        "podSelector" in peer and "namespaceSelector" not in peer and selects(peer["podSelector"], other)
        for peer in peers
    )


def _rules(policies: Sequence[Manifest], direction: str, labels: Labels) -> Iterator[Manifest]:
    for policy in policies:
        if direction.capitalize() in policy["policyTypes"] and selects(policy["podSelector"], labels):
            yield from policy.get(direction, ())


def _side(direction: str) -> str:
    return {"ingress": "from", "egress": "to"}[direction]

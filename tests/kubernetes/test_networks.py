"""In a cluster who reaches whom is what compose.yaml's networks allow."""

import json
from collections.abc import Mapping, Sequence

import pytest

from .kustomize import Manifest
from .overlays import CONTAINERS, NAMES, OVERLAYS, overlay
from .reach import Labels, is_isolated, neighbours, pods, strangers

SERVERS = {"postgres", "nats"}
OWNERS = {"nats-owner", "postgres-owner"}
"""They give servers their volumes; in a cluster fsGroup does."""
INTERNAL = {"models", "tools", "votes", "providers", "admin"}

SERVER_OF_NAMES = {
    "to": [
        {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
            "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
        }
    ],
    "ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}],
}
PRIVATE = ["10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"]
PROVIDERS = {
    "to": [
        {"ipBlock": {"cidr": "0.0.0.0/0", "except": PRIVATE}},
        {"ipBlock": {"cidr": "::/0", "except": ["fc00::/7", "fe80::/10"]}},
    ],
    "ports": [{"protocol": "TCP", "port": 443}],
}
POSTGRES = {"to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}], "ports": [{"protocol": "TCP", "port": 5432}]}
NATS = {
    "to": [
        {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "nats"}},
            "podSelector": {"matchLabels": {"app.kubernetes.io/name": "nats"}},
        }
    ],
    "ports": [{"protocol": "TCP", "port": 4222}],
}
"""The ways out, written down a second time on purpose."""
MORE = (
    {},
    {"to": PROVIDERS["to"]},
    {**PROVIDERS, "ports": [{"protocol": "TCP", "port": 443, "endPort": 65535}]},
    {**PROVIDERS, "to": [*PROVIDERS["to"], {"ipBlock": {"cidr": "10.0.0.0/8"}}]},
    {**SERVER_OF_NAMES, "to": [{"ipBlock": {"cidr": "192.0.2.53/32"}}]},
    {**SERVER_OF_NAMES, "to": [{"namespaceSelector": {}}]},
    {**POSTGRES, "to": [{"ipBlock": {"cidr": "192.0.2.0/23"}}]},
)

each_overlay = pytest.mark.parametrize("name", OVERLAYS)


def networks(container: str) -> set[str]:
    return set(CONTAINERS[container].get("networks", ()))


WIDENINGS = [
    (pod, network) for pod in sorted(CONTAINERS) for network in sorted(INTERNAL - networks(pod)) if pod not in OWNERS
]


def by_compose(names: set[str], changed: Mapping[str, set[str]] | None = None) -> dict[str, set[str]]:
    member_of = {name: networks(name) for name in names} | dict(changed or {})
    return {name: {other for other in names if other != name and member_of[name] & member_of[other]} for name in names}


def by_policies(manifests: Sequence[Manifest], labels: Mapping[str, Labels]) -> dict[str, set[str]]:
    return {name: neighbours(manifests, name, labels) for name in labels}


def of_compose(labels: Mapping[str, Labels]) -> dict[str, Labels]:
    """Those pods that are containers of compose too: not the jobs that only a cluster has."""
    return {name: each for name, each in labels.items() if name in CONTAINERS}


def test_on_one_machine_a_cluster_has_every_container_of_compose() -> None:
    assert set(of_compose(pods(overlay("small")))) == set(CONTAINERS) - OWNERS


@each_overlay
def test_who_reaches_whom_is_as_in_compose(name: str) -> None:
    labels = of_compose(pods(overlay(name)))
    assert by_policies(overlay(name), labels) == by_compose(set(labels))


@pytest.mark.parametrize(("pod", "network"), WIDENINGS)
def test_a_pod_in_one_network_more_reaches_what_it_would_in_compose(pod: str, network: str) -> None:
    labels = of_compose(pods(overlay("small")))
    widened = labels | {pod: {**labels[pod], f"network.synod/{network}": "member"}}
    assert by_policies(overlay("small"), widened) == by_compose(set(labels), {pod: networks(pod) | {network}})


def test_a_policy_that_opens_anything_is_seen() -> None:
    everybody = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"], "ingress": [{}], "egress": [{}]}
    opened = [*overlay("small"), {"kind": "NetworkPolicy", "spec": everybody}]
    labels = of_compose(pods(overlay("small")))
    assert by_policies(opened, labels) != by_compose(set(labels))
    assert strangers(opened, "ingress", labels["nats"])
    assert public(strangers(opened, "egress", labels["nats"])) == []
    assert {} in strangers(opened, "egress", labels["nats"])


@each_overlay
def test_what_no_policy_allows_is_forbidden_to_every_pod(name: str) -> None:
    for labels in pods(overlay(name)).values():
        assert is_isolated(overlay(name), "ingress", labels)
        assert is_isolated(overlay(name), "egress", labels)


@each_overlay
def test_only_the_edges_are_reached_from_outside_and_by_their_ports_only(name: str) -> None:
    entered = {pod: strangers(overlay(name), "ingress", labels) for pod, labels in pods(overlay(name)).items()}
    by_its_edge = [{"ports": [{"protocol": "TCP", "port": "edge"}]}]
    assert {pod: rules for pod, rules in entered.items() if rules} == {
        "ws-gateway": by_its_edge,
        "llm-gateway": by_its_edge,
    }


@each_overlay
def test_only_llm_gateway_reaches_the_internet_and_nothing_private_by_it(name: str) -> None:
    open_to = {pod: public(strangers(overlay(name), "egress", labels)) for pod, labels in pods(overlay(name)).items()}
    found = {pod: blocks for pod, blocks in open_to.items() if blocks}
    assert set(found) == {"llm-gateway"}
    excepted = {network for block in found["llm-gateway"] for network in block["except"]}
    assert {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "fc00::/7", "fe80::/10"} <= excepted


@each_overlay
def test_beyond_its_namespace_a_pod_reaches_what_is_written_down_and_no_more(name: str) -> None:
    for pod, labels in pods(overlay(name)).items():
        assert in_order(strangers(overlay(name), "egress", labels)) == in_order(beyond(name, pod)), pod


@pytest.mark.parametrize("rule", MORE, ids=str)
def test_a_way_out_that_is_opened_more_is_seen(rule: Manifest) -> None:
    opened = {"kind": "NetworkPolicy", "spec": {"podSelector": {}, "policyTypes": ["Egress"], "egress": [rule]}}
    for pod, labels in pods(overlay("production")).items():
        found = strangers([*overlay("production"), opened], "egress", labels)
        assert in_order(found) != in_order(beyond("production", pod))


def test_the_job_that_makes_databases_meets_nobody_in_the_cluster() -> None:
    assert neighbours(overlay("production"), "databases", pods(overlay("production"))) == set()


def test_external_servers_are_reached_by_those_that_reach_them_in_compose() -> None:
    for pod, labels in of_compose(pods(overlay("production"))).items():
        rules = strangers(overlay("production"), "egress", labels)
        reached = {port["port"] for rule in rules for port in rule["ports"]} & {5432, 4222}
        wanted = {port for server, port in (("postgres", 5432), ("nats", 4222)) if networks(pod) & networks(server)}
        assert reached == wanted, pod


@each_overlay
@pytest.mark.parametrize("service", NAMES)
def test_a_migration_reaches_no_more_than_its_service(service: str, name: str) -> None:
    labels = pods(overlay(name))
    migration = f"migrate-{service}"
    reached = neighbours(overlay(name), migration, labels)
    assert reached & set(CONTAINERS) <= neighbours(overlay(name), service, labels) | {service}
    assert (reached >= SERVERS) == (name == "small")


def beyond(name: str, pod: str) -> list[Manifest]:
    """The ways out of a pod."""
    elsewhere = name == "production"
    return [
        SERVER_OF_NAMES,
        *([PROVIDERS] if pod == "llm-gateway" else []),
        *([POSTGRES] if elsewhere and pod != "nats-admin" else []),
        *([NATS] if elsewhere and pod != "databases" else []),
    ]


def in_order(rules: Sequence[Manifest]) -> list[Manifest]:
    return sorted(rules, key=lambda rule: json.dumps(rule, sort_keys=True))


def public(rules: Sequence[Manifest]) -> list[Manifest]:
    """The address ranges of the internet among them."""
    blocks = [peer["ipBlock"] for rule in rules for peer in rule.get("to", ()) if "ipBlock" in peer]
    return [block for block in blocks if block["cidr"] in {"0.0.0.0/0", "::/0"}]

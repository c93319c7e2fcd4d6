"""What `kubectl kustomize` makes of a directory, for the part of Kustomize that deploy/kubernetes uses.

Tests have to know what a cluster is given, and kubectl is no Python package. What this does not know it refuses, so that no
test passes on a field that was overlooked. Where there is kubectl, `make kubernetes-lint` compares the two:

    kubectl kustomize DIRECTORY | python tests/kubernetes/kustomize.py DIRECTORY
"""

import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]
MERGED_BY: Mapping[str, str] = {
    "containers": "name",
    "env": "name",
    "ports": "containerPort",
    "volumeMounts": "mountPath",
    "volumes": "name",
}
"""Lists of which a patch changes the entry of the same key; it replaces any other list."""
HASH_LETTERS = str.maketrans("013ae", "ghkmt")
NAMESPACELESS = {"Namespace"}


def build(directory: Path) -> list[Manifest]:
    """The manifests of the kustomization in `directory`. Raises ValueError for what is not understood here."""
    manifests = _accumulated(directory)
    renamed = {
        each["metadata"]["name"]: f"{each['metadata']['name']}-{config_hash(each)}"
        for each in manifests
        if each["kind"] == "ConfigMap"
    }
    for each in manifests:
        if each["kind"] == "ConfigMap":
            each["metadata"]["name"] = renamed[each["metadata"]["name"]]
        _refer(each, renamed)
    return manifests


def config_hash(config_map: Manifest) -> str:
    """The end of a generated name: another content has another name, so that pods with the old one are replaced."""
    content = {"data": config_map["data"], "kind": "ConfigMap", "name": ""}  # Kustomize looks the name up in vain
    encoded = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    for letter in "<>&":  # as Go's encoder has them
        encoded = encoded.replace(letter, f"\\u{ord(letter):04x}")
    return hashlib.sha256(encoded.encode()).hexdigest()[:10].translate(HASH_LETTERS)


def merged(base: Any, patch: Any, field: str = "") -> Any:
    """A strategic merge: maps by key, where null removes, some lists by an entry's key, everything else replaced."""
    if isinstance(base, dict) and isinstance(patch, dict):
        result = {key: value for key, value in base.items() if patch.get(key, value) is not None}
        changes = {key: merged(base.get(key), value, key) for key, value in patch.items() if value is not None}
        return result | changes
    if isinstance(base, list) and field in MERGED_BY:
        by_key = {entry[MERGED_BY[field]]: entry for entry in base}
        changed = {entry[MERGED_BY[field]]: entry for entry in patch}
        return list((by_key | {key: merged(by_key.get(key), entry) for key, entry in changed.items()}).values())
    return without_nulls(patch)


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return value


def selects(selector: str, labels: Mapping[str, str]) -> bool:
    """`key=value` or `key in (one, other)`. Raises ValueError for any other selector."""
    if match := re.fullmatch(r"(\S+) in \(([^)]*)\)", selector):
        return labels.get(match[1]) in {value.strip() for value in match[2].split(",")}
    if match := re.fullmatch(r"([^\s=!]+)=([^\s=]+)", selector):
        return labels.get(match[1]) == match[2]
    raise ValueError(f"selector {selector!r}")


def _accumulated(directory: Path) -> list[Manifest]:
    kustomization = yaml.safe_load((directory / "kustomization.yaml").read_text())
    manifests: list[Manifest] = []
    for field in ("resources", "configMapGenerator", "patches", "namespace", "labels", "images", "replicas"):
        for entry in _entries(kustomization.pop(field, [])):
            _STEPS[field](manifests, entry, directory)
    if unknown := kustomization.keys() - {"apiVersion", "kind"}:
        raise ValueError(f"{directory}: fields {sorted(unknown)} are not known here")
    return manifests


def _entries(field: Any) -> list[Any]:
    return field if isinstance(field, list) else [field]


def _add(manifests: list[Manifest], name: str, directory: Path) -> None:
    path = directory / name
    manifests += _accumulated(path) if path.is_dir() else list(yaml.safe_load_all(path.read_text()))


def _generate(manifests: list[Manifest], entry: Manifest, directory: Path) -> None:
    _only(entry, {"name", "behavior", "envs", "files", "literals"})
    data = dict(_pairs(entry, directory))
    if entry.get("behavior") == "merge":
        (found,) = [
            each for each in manifests if (each["kind"], each["metadata"]["name"]) == ("ConfigMap", entry["name"])
        ]
        found["data"] |= data
        return
    manifests.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": entry["name"]}, "data": data})


def _pairs(entry: Manifest, directory: Path) -> Iterator[tuple[str, str]]:
    lines = [line for file in entry.get("envs", ()) for line in (directory / file).read_text().splitlines()]
    for line in (*lines, *entry.get("literals", ())):
        if line and not line.startswith("#"):
            key, _, value = line.partition("=")
            yield key, value
    for file in entry.get("files", ()):
        yield Path(file).name, (directory / file).read_text()


def _patch(manifests: list[Manifest], entry: Manifest, directory: Path) -> None:
    _only(entry, {"path", "target"})
    patch = yaml.safe_load((directory / entry["path"]).read_text())
    target = entry.get("target") or {"kind": patch["kind"], "name": patch["metadata"]["name"]}
    found = [each for each in manifests if _is_target(each, target)]
    if not found:
        raise ValueError(f"{entry['path']}: there is nothing to patch")
    for each in found:
        kept = {"apiVersion": each["apiVersion"], "kind": each["kind"], "metadata": each["metadata"]}
        change = {**patch, "metadata": {**patch["metadata"], "name": each["metadata"]["name"]}}
        result = merged(each, change) | {key: kept[key] for key in ("apiVersion", "kind")}
        each.clear()
        each.update(result)


def _is_target(manifest: Manifest, target: Manifest) -> bool:
    _only(target, {"kind", "name", "labelSelector"})
    kind, name = manifest["kind"], manifest["metadata"]["name"]
    return (
        target.get("kind", kind) == kind
        and target.get("name", name) == name
        and ("labelSelector" not in target or selects(target["labelSelector"], manifest["metadata"].get("labels", {})))
    )


def _put_in_namespace(manifests: list[Manifest], namespace: str, _directory: Path) -> None:
    for each in manifests:
        if each["kind"] not in NAMESPACELESS:
            each["metadata"]["namespace"] = namespace


def _label(manifests: list[Manifest], entry: Manifest, _directory: Path) -> None:
    _only(entry, {"pairs"})
    for each in manifests:
        each["metadata"].setdefault("labels", {}).update(entry["pairs"])


def _name_image(manifests: list[Manifest], entry: Manifest, _directory: Path) -> None:
    _only(entry, {"name", "newName", "newTag"})
    for container in _containers(manifests):
        name, _, tag = container["image"].rpartition(":")
        if name == entry["name"]:
            container["image"] = f"{entry.get('newName', name)}:{entry.get('newTag', tag)}"


def _replicate(manifests: list[Manifest], entry: Manifest, _directory: Path) -> None:
    _only(entry, {"name", "count"})
    for each in manifests:
        if each["kind"] in {"Deployment", "StatefulSet"} and each["metadata"]["name"] == entry["name"]:
            each["spec"]["replicas"] = entry["count"]


_STEPS: Mapping[str, Callable[[list[Manifest], Any, Path], None]] = {
    "resources": _add,
    "configMapGenerator": _generate,
    "patches": _patch,
    "namespace": _put_in_namespace,
    "labels": _label,
    "images": _name_image,
    "replicas": _replicate,
}


def _only(entry: Manifest, known: set[str]) -> None:
    if unknown := entry.keys() - known:
        raise ValueError(f"fields {sorted(unknown)} of {entry} are not known here")


def _containers(manifests: list[Manifest]) -> Iterator[Manifest]:
    for each in manifests:
        if "template" in each.get("spec", {}):
            yield from each["spec"]["template"]["spec"]["containers"]


def _refer(value: Any, renamed: Mapping[str, str]) -> None:
    """Put the generated names where a pod refers to a ConfigMap."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in {"configMapRef", "configMapKeyRef", "configMap"}:
                inner["name"] = renamed[inner["name"]]
            _refer(inner, renamed)
    elif isinstance(value, list):
        for inner in value:
            _refer(inner, renamed)


def ordered(value: Any, field: str = "") -> Any:
    """The same with the lists in one order whose order says nothing."""
    if isinstance(value, dict):
        return {key: ordered(inner, key) for key, inner in value.items()}
    if isinstance(value, list):
        entries = [ordered(inner) for inner in value]
        return sorted(entries, key=lambda entry: str(entry[MERGED_BY[field]])) if _is_keyed(entries, field) else entries
    return value


def _is_keyed(entries: list[Any], field: str) -> bool:
    return field in MERGED_BY and all(isinstance(entry, dict) and MERGED_BY[field] in entry for entry in entries)


def by_name(manifests: list[Manifest]) -> dict[tuple[str, str], Manifest]:
    return {(each["kind"], each["metadata"]["name"]): each for each in manifests}


def main(directory: str) -> int:
    """Compares with what kubectl made, which comes by standard input; answers the exit code."""
    theirs = by_name([ordered(each) for each in yaml.safe_load_all(sys.stdin)])
    ours = by_name([ordered(each) for each in deepcopy(build(Path(directory)))])
    differing = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    for kind, name in differing:
        print(f"{directory}: kubectl has another {kind} {name}")
    print(f"{directory}: {len(ours)} manifests, {len(differing)} differ")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

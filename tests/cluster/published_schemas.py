"""KubeRay's published schemas with every object closed, and their CEL rules in Python.

The API server drops unknown keys silently, so a misspelt key would pass; here it is an error.
"""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

CRDS = Path(__file__).parents[3] / "shared" / "data" / "kuberay-1.7.0"
MISSING = "the schemas of ../shared/data/kuberay-1.7.0 are not here"
FILES = {"RayCluster": "ray.io_rayclusters.yaml", "RayJob": "ray.io_rayjobs.yaml"}
CEL: dict[str, Callable[[Any], bool]] = {
    "!((has(self.onSuccess) || has(self.onFailure)) && has(self.deletionRules))": lambda self: (
        not (("onSuccess" in self or "onFailure" in self) and "deletionRules" in self)
    ),
    "((has(self.onSuccess) && has(self.onFailure)) || has(self.deletionRules))": lambda self: (
        ("onSuccess" in self and "onFailure" in self) or "deletionRules" in self
    ),
    "!(has(self.jobStatus) && has(self.jobDeploymentStatus))": lambda self: (
        not ("jobStatus" in self and "jobDeploymentStatus" in self)
    ),
    "has(self.jobStatus) || has(self.jobDeploymentStatus)": lambda self: (
        "jobStatus" in self or "jobDeploymentStatus" in self
    ),
    "self in ['ray.io/kuberay-operator', 'kueue.x-k8s.io/multikueue']": lambda self: (
        self in ("ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue")
    ),
    "self == oldSelf": lambda self: True,
}
"""Each CEL rule of the schemas by its text; the last one is about changes of an object that exists."""


@cache
def schema_of(kind: str) -> dict[str, Any]:
    """The schema of version v1 of a kind, as published."""
    published = yaml.load((CRDS / FILES[kind]).read_text(), yaml.CSafeLoader)
    return next(v["schema"]["openAPIV3Schema"] for v in published["spec"]["versions"] if v["name"] == "v1")


@cache
def closed_schema_of(kind: str) -> dict[str, Any]:
    schema = _closed(schema_of(kind))
    schema["properties"]["metadata"] = {"type": "object"}  # Kubernetes' own, of all objects
    return schema


def faults(manifest: dict[str, Any]) -> list[str]:
    """Mistakes of a RayJob or RayCluster by its schema and its CEL rules."""
    found = Draft202012Validator(closed_schema_of(manifest["kind"])).iter_errors(manifest)
    return [error.message for error in found] + list(_broken(schema_of(manifest["kind"]), manifest))


def cel_rules(schema: Any) -> set[str]:
    """The text of every CEL rule below a schema."""
    if isinstance(schema, list):
        return set().union(*map(cel_rules, schema))
    if not isinstance(schema, dict):
        return set()
    own = schema.get("x-kubernetes-validations")
    rules = {rule["rule"] for rule in own} if isinstance(own, list) else set()
    return rules.union(*map(cel_rules, schema.values()))


def _closed(schema: Any) -> Any:
    """A copy whose objects take the named keys alone, unless the schema says otherwise."""
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _closed(value) for key, value in schema.items()}
    is_open = "additionalProperties" in made or made.get("x-kubernetes-preserve-unknown-fields")
    return made if made.get("type") != "object" or is_open else made | {"additionalProperties": False}


def _broken(schema: dict[str, Any], value: Any) -> Iterator[str]:
    """Broken CEL rules of a value and of all below it."""
    for rule in schema.get("x-kubernetes-validations", []):
        if not CEL[rule["rule"]](value):
            yield rule.get("message", rule["rule"])
    for item in value if isinstance(value, list) else []:
        yield from _broken(schema.get("items", {}), item)
    for key, below in value.items() if isinstance(value, dict) else []:
        yield from _broken(schema.get("properties", {}).get(key, {}), below)

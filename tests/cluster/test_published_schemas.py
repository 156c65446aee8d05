"""Every manifest is valid by the schemas that KubeRay and Kubernetes publish."""

from typing import Any

import pytest
from manifests import every_manifest, job, ray_spec, templates
from published_schemas import CEL, CRDS, FILES, MISSING, cel_rules, faults, schema_of

pytestmark = pytest.mark.heavy
needs_schemas = pytest.mark.skipif(not CRDS.exists(), reason=MISSING)
MANIFESTS = dict(every_manifest())
OF_RAY = {name: manifest for name, manifest in MANIFESTS.items() if manifest["kind"] in FILES}
OF_KUBERNETES = {name: manifest for name, manifest in MANIFESTS.items() if manifest["kind"] not in FILES}
POD = {"apiVersion": "v1", "kind": "Pod"}


@needs_schemas
@pytest.mark.parametrize("name", OF_RAY)
def test_a_manifest_of_ray_has_only_keys_and_values_of_the_published_schema(name):
    assert faults(OF_RAY[name]) == []


@needs_schemas
@pytest.mark.parametrize("place", ["spec", "cluster", "pod", "container"])
def test_a_misspelt_key_is_found_wherever_it_is(place):
    made = job()
    places = {"spec": made["spec"], "cluster": ray_spec(made), "pod": templates(made)[1]["spec"]}
    places["container"] = places["pod"]["containers"][0]
    places[place]["backofLimit"] = 1
    assert [fault for fault in faults(made) if "backofLimit" in fault]


@needs_schemas
def test_a_value_of_the_wrong_kind_is_found():
    made = job()
    made["spec"]["backoffLimit"] = "3"
    assert faults(made) == ["'3' is not of type 'integer'"]


@needs_schemas
def test_every_cel_rule_of_the_schemas_is_evaluated():
    assert set().union(*(cel_rules(schema_of(kind)) for kind in FILES)) == set(CEL)


LEGACY = {"onSuccess": {"policy": "DeleteCluster"}}
BREAKS: dict[str, dict[str, Any]] = {
    "legacy and rules": {"deletionStrategy": {**LEGACY, **job()["spec"]["deletionStrategy"]}},
    "one legacy": {"deletionStrategy": LEGACY},
    "two states": {"jobStatus": "FAILED", "jobDeploymentStatus": "Failed"},
    "no state": {"ttlSeconds": 0},
    "manager": {"managedBy": "somebody"},
}
SAYS = {
    "legacy and rules": "legacy policies (onSuccess/onFailure) and deletionRules cannot be used together",
    "one legacy": "deletionStrategy requires either BOTH onSuccess and onFailure",
    "two states": "JobStatus and JobDeploymentStatus cannot be used together",
    "no state": "the deletion condition requires either the JobStatus or the JobDeploymentStatus",
    "manager": "managedBy",
}


@needs_schemas
@pytest.mark.parametrize("name", BREAKS)
def test_a_manifest_that_breaks_a_cel_rule_is_refused(name):
    made = job()
    if name.endswith("state") or name.endswith("states"):
        made["spec"]["deletionStrategy"]["deletionRules"][0]["condition"] = BREAKS[name]
    else:
        made["spec"] |= BREAKS[name]
    assert any(SAYS[name] in fault for fault in faults(made)), faults(made)


@pytest.mark.parametrize("name", OF_KUBERNETES)
def test_a_manifest_of_kubernetes_is_valid_strictly(name):
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    kubernetes_validate.validate(OF_KUBERNETES[name], kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("name", [name for name in OF_RAY if name.endswith("RayJob")])
def test_every_pod_of_a_job_is_a_valid_pod_strictly(name):
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    for template in templates(OF_RAY[name]):
        kubernetes_validate.validate({**POD, **template}, kubernetes_validate.latest_version(), strict=True)


def test_strict_is_strict():
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    pod = {**POD, **templates(job())[0]}
    pod["spec"]["restartPolice"] = "Never"
    with pytest.raises(kubernetes_validate.ValidationError, match="restartPolice"):
        kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)

"""What the manifests say about the run: config, command, ends, places, time to save, credentials by name."""

import argparse
from pathlib import Path

import pytest
import yaml
from manifests import ALL_KEYS, GROUP, KINDS, SPOT, cluster_config, job, ray_spec, run_config, templates

from cluster.kuberay import as_yaml, cluster_manifests, job_manifests
from jobs.pretrain import add_arguments
from tips_ray.config import RunConfig, load_config, override

OFF_SPOT = [{"matchExpressions": [{"key": next(iter(SPOT)), "operator": "NotIn", "values": ["spot"]}]}]


def test_the_config_inside_is_the_config_of_the_run(tmp_path):
    run = run_config("schedule.peak_lr=1e-4", "tracking.tags={mlflow.note.content: 'of\n  two: lines \u00e9'}")
    written = list(yaml.safe_load_all(as_yaml(job_manifests(run, cluster_config()))))
    path = tmp_path / "run.yaml"
    path.write_text(written[0]["data"]["run.yaml"], encoding="utf-8")
    assert load_config(RunConfig, path) == run


def test_yaml_holds_what_was_made():
    manifests = job_manifests(run_config(), cluster_config(**ALL_KEYS))
    assert list(yaml.safe_load_all(as_yaml(manifests))) == manifests


def test_the_entrypoint_is_a_command_of_ours_on_the_mounted_config():
    made = job()
    command, name, *rest = made["spec"]["entrypoint"].split()
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_arguments(parser)
    arguments = parser.parse_args(rest)
    head = templates(made)[0]["spec"]
    mount = head["containers"][0]["volumeMounts"][-1]
    assert (command, name, arguments.supervise) == ("tips-ray", "pretrain", True)
    assert arguments.config == Path(mount["mountPath"]) / "run.yaml"
    assert mount["name"] == head["volumes"][-1]["name"]
    assert head["volumes"][-1]["configMap"]["name"] == made["metadata"]["name"]


def test_the_driver_stays_on_the_head_where_no_worker_fits():
    made = job()
    assert ray_spec(made)["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    assert not {"entrypointNumCpus", "entrypointNumGpus", "entrypointResources"} & made["spec"].keys()


def _ends(kind: str) -> set[tuple[str, int]]:
    rules = job(**KINDS[kind])["spec"]["deletionStrategy"]["deletionRules"]
    assert {*rules[0]["condition"]} == {"jobStatus", "ttlSeconds"} and len(rules) % 3 == 0
    return {(rule["policy"], rule["condition"]["ttlSeconds"]) for rule in rules}


def test_workers_leave_at_once_and_the_head_keeps_its_logs_for_an_hour():
    assert _ends("fixed") == {("DeleteWorkers", 0), ("DeleteCluster", 3600)}


def test_an_autoscaled_cluster_is_deleted_as_a_whole():
    spec = ray_spec(job(**KINDS["autoscaled"]))
    assert _ends("autoscaled") == {("DeleteCluster", 3600)}
    assert spec["enableInTreeAutoscaling"] and spec["autoscalerOptions"] == {"version": "v2", "idleTimeoutSeconds": 300}
    assert [spec["workerGroupSpecs"][0][key] for key in ("replicas", "minReplicas", "maxReplicas")] == [0, 0, 4]


def test_kueue_gets_its_own_way_to_end():
    made = job(queue="team", keep_cluster_seconds=60)
    assert made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    assert made["spec"]["shutdownAfterJobFinishes"] and made["spec"]["ttlSecondsAfterFinished"] == 60
    assert "deletionStrategy" not in made["spec"]


def test_every_pod_has_time_to_save():
    for template in templates(job(grace_seconds=300)):
        env = {one["name"]: one["value"] for one in template["spec"]["containers"][0]["env"]}
        assert template["spec"]["terminationGracePeriodSeconds"] == 300
        assert env == {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "290", "RAY_JOB_STOP_WAIT_TIME_S": "290"}


def test_roles_labels_and_gpus_are_those_of_the_group():
    train, data = ray_spec(job(**ALL_KEYS))["workerGroupSpecs"]
    assert train["resources"] == {"train": "2", "caption": "1"} and data["resources"] == {"data": "8"}
    assert train["labels"] == {"kind": "train"}
    limits = [group["template"]["spec"]["containers"][0]["resources"]["limits"] for group in (train, data)]
    assert limits[0] == {"cpu": "8", "memory": "32Gi", "nvidia.com/gpu": "1"}
    assert limits[1] == {"cpu": "8", "memory": "32Gi"}
    assert [group["replicas"] for group in (train, data)] == [1, 3]


def test_spot_groups_use_spot_nodes_and_all_others_stay_off_them():
    head, train, data = (template["spec"] for template in templates(job(**ALL_KEYS)))
    for pod in (head, train):
        affinity = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        assert affinity["nodeSelectorTerms"] == OFF_SPOT
    assert "affinity" not in data and data["nodeSelector"] == SPOT
    assert head["nodeSelector"] == {"zone": "a"}
    assert train["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-L4"}
    assert train["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert data["tolerations"] == [
        {"operator": "Equal", "key": "spot", "value": "yes", "effect": "NoExecute"},
        {"operator": "Exists", "key": "any"},
    ]


def test_the_budget_covers_the_head_alone():
    _, budget, made = job_manifests(run_config(), cluster_config())
    wanted = budget["spec"]["selector"]["matchLabels"].items()
    assert budget["spec"]["minAvailable"] == 1
    assert [wanted <= template["metadata"]["labels"].items() for template in templates(made)] == [True, False]


def test_credentials_are_named_in_every_pod_and_written_nowhere():
    for template in templates(job(**ALL_KEYS)):
        container = template["spec"]["containers"][0]
        assert container["envFrom"] == [{"secretRef": {"name": "storage-access"}}]
        assert template["spec"]["serviceAccountName"] == "trainer"
        assert [mount["mountPath"] for mount in container["volumeMounts"]][:2] == ["/data", "/models"]


def test_a_token_is_asked_for_unless_it_is_turned_off():
    assert ray_spec(job())["authOptions"] == {"mode": "token"}
    assert "authOptions" not in ray_spec(job(token_auth=False))


def test_a_run_has_one_name_and_a_standing_cluster_another():
    names = {made["metadata"]["name"] for made in job_manifests(run_config(), cluster_config())}
    again = {made["metadata"]["name"] for made in job_manifests(run_config("seed=1"), cluster_config(groups=[GROUP]))}
    standing = {made["metadata"]["name"] for made in cluster_manifests(cluster_config(), "photos")}
    assert len(names) == 1 and names == again and not names & standing


def test_a_config_that_no_config_map_holds_is_refused():
    sources = [{"uri": f"s3://bucket/{number}{'a' * 10_100}.tar"} for number in range(100)]
    long = override(RunConfig, run_config().model_dump(mode="json"), {"data.sources": sources})
    with pytest.raises(ValueError, match="name the sources by patterns"):
        job_manifests(long, cluster_config())

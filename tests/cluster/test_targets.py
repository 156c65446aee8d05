"""Tasks of SkyPilot and dstack say all that the cluster's config says, or refuse it."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml
from manifests import BASE, GROUP, SPOT, cluster_config, run_config

from cluster.config import ClusterConfig, GroupConfig, HeadConfig
from cluster.targets import REFUSED_BY, written
from cluster.tasks import gpu_name
from tips_ray.config import RunConfig, override
from tips_ray.errors import sentences

TRAIN = {
    **GROUP,
    "name": "train",
    "nodes": 2,
    "cpus": 32,
    "memory_gib": 128,
    "gpus": 8,
    "gpu_kind": "NVIDIA-H100-80GB-HBM3",
}
TRAIN |= {"roles": {"train": 8, "data": 8}, "labels": {"kind": "train"}}
DATA = {**GROUP, "name": "data", "gpus": 0, "cpus": 16, "roles": {"data": 16}}
FULL = {
    "groups": [TRAIN],
    "env": {"AWS_ENDPOINT_URL": "https://s3.example.com"},
    "secret_names": ["AWS_SECRET_ACCESS_KEY"],
    "ray_version": "2.60.0",
    "grace_seconds": 160,
    "start_seconds": 600,
}
ROLES = ("resources.roles=true", "resources.gpus_per_worker=1")


def task(target: str, *overrides: str, **changes) -> dict:
    text, _ = written(target, run_config(*ROLES, *overrides), cluster_config(**{**FULL, **changes}), standing=False)
    (made,) = yaml.safe_load_all(text)
    return made


def scripts(target: str, made: dict) -> list[str]:
    return [made["run"]] if target == "skypilot" else [command for g in made["groups"] for command in g["commands"]]


def test_skypilot_has_equal_nodes_and_the_first_leaves_cpus_to_the_head():
    made = task("skypilot")
    assert made["num_nodes"] == 2 and made["envs"]["TIPS_CPUS"] == "32" and "export TIPS_CPUS=28" in made["run"]
    assert made["resources"] == {
        "image_id": "docker:tips-ray:0.1.0",
        "cpus": "32+",
        "memory": "128+",
        "use_spot": False,
        "accelerators": "H100:8",
        "job_recovery": {"max_restarts_on_errors": 3, "recover_on_exit_codes": [75]},
    }
    assert json.loads(made["envs"]["TIPS_RESOURCES"]) == {"train": 8, "data": 8}
    assert made["envs"]["TIPS_LABELS"] == "kind=train" and made["envs"]["TIPS_START_SECONDS"] == "600"
    assert made["envs"]["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] == "150"


def test_dstack_has_a_group_for_the_head_and_one_for_each_of_the_config():
    made = task("dstack", groups=[TRAIN, DATA])
    assert [(group["name"], group["nodes"]) for group in made["groups"]] == [("head", 1), ("train", 2), ("data", 1)]
    assert made["groups"][1]["resources"]["gpu"] == {"count": 8, "name": "H100", "memory": "80GB"}
    assert made["groups"][0]["resources"]["gpu"] == made["groups"][2]["resources"]["gpu"] == {"count": 0}
    head, train, data = (script.splitlines()[1] for script in scripts("dstack", made))
    assert head == "export TIPS_CPUS='0' TIPS_GPUS='0'"
    assert 'TIPS_RESOURCES=\'{"train": 8, "data": 8}\'' in train and "TIPS_LABELS='kind=train'" in train
    assert "TIPS_RESOURCES='{\"data\": 16}'" in data


@pytest.mark.parametrize("target", ["skypilot", "dstack"])
def test_secrets_are_named_and_no_value_is_in_the_task(target, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-value")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "the-token")
    made = task(target)
    asked = made["secrets"] if target == "skypilot" else {k: v for k, v in made["env"].items() if "secrets." in str(v)}
    assert set(asked) == {"AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN"} and "the-" not in yaml.safe_dump(made)
    without = task(target, token_auth=False)
    assert "RAY_AUTH_TOKEN" not in yaml.safe_dump(without.get("secrets", without.get("env")))


@pytest.mark.parametrize("target", ["skypilot", "dstack"])
def test_the_script_writes_the_run_as_it_is_and_starts_the_node(target, tmp_path):
    """Bash runs each script up to its last line; the config that it writes is the run's, character for character."""
    odd = run_config(*ROLES, 'tracking.tags={note: "it\'s $HOME `x` \\\\ END é"}')
    text, _ = written(target, odd, cluster_config(**FULL), standing=False)
    for script in scripts(target, yaml.safe_load(text)):
        *before, last = script.splitlines()
        assert last == "exec bash node.sh tips-ray pretrain run.yaml --supervise"
        made = subprocess.run(
            ["bash"],
            input="\n".join([*before, "pwd"]),
            capture_output=True,
            text=True,
            check=True,
            env={"PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path)},
        )
        folder = Path(made.stdout.splitlines()[-1])
        assert override(RunConfig, yaml.safe_load((folder / "run.yaml").read_text()), {}) == odd
        assert subprocess.run(["bash", "-n", folder / "node.sh"]).returncode == 0


def test_a_spot_task_is_tried_again_after_interruptions_and_a_stopped_run_is_not():
    spot = {"groups": [{**TRAIN, "spot": True}], "spot_nodes": SPOT}
    assert task("skypilot", **spot)["resources"]["use_spot"] is True
    made = task("dstack", **spot)
    assert made["spot_policy"] == "spot"
    assert made["retry"] == {"on_events": ["no-capacity", "interruption"], "duration": "600s"}
    assert "retry" not in task("dstack", retries=0)


def test_the_name_is_that_of_the_run_on_every_target_so_that_it_cannot_be_there_twice():
    long = ("name=" + "a-very-long-name-" * 4,)
    assert task("dstack", *long)["name"] == task("dstack", *long, "schedule.total_steps=77")["name"]
    assert len(task("dstack", *long)["name"]) <= 41 and len(task("skypilot", *long)["name"]) <= 47
    assert task("dstack")["name"] == task("skypilot")["name"] != task("dstack", "storage=s3://other/runs")["name"]


KINDS = {
    "NVIDIA-H100-80GB-HBM3": ("H100", 80),
    "NVIDIA-A100-SXM4-40GB": ("A100", 40),
    "NVIDIA-A100-80GB-PCIe": ("A100", 80),
    "NVIDIA-L4": ("L4", None),
    "NVIDIA-L40S": ("L40S", None),
    "NVIDIA-A10G": ("A10G", None),
    "NVIDIA-H200": ("H200", None),
    "Tesla-V100-SXM2-16GB": ("V100", 16),
    "Tesla-T4": ("T4", None),
    "NVIDIA-RTX-A6000": ("RTXA6000", None),
    "NVIDIA-GH200-480GB": ("GH200", None),
    "B200": ("B200", None),
}


@pytest.mark.parametrize("label", KINDS)
def test_gpus_are_known_by_nvidias_labels(label):
    assert gpu_name(GroupConfig.model_validate({**GROUP, "gpu_kind": label})) == KINDS[label]


def test_skypilot_tells_gpus_of_one_name_apart_by_their_memory():
    names = {
        "NVIDIA-A100-SXM4-80GB": "A100-80GB:8",
        "NVIDIA-A100-SXM4-40GB": "A100:8",
        "Tesla-V100-SXM2-32GB": "V100-32GB:8",
    }
    for label, wanted in names.items():
        assert task("skypilot", groups=[{**TRAIN, "gpu_kind": label}])["resources"]["accelerators"] == wanted


CANNOT = {
    "namespace": {"namespace": "team"},
    "image_pull_secret": {"image_pull_secret": "registry"},
    "secret": {"secret": "storage"},
    "service_account": {"service_account": "trainer"},
    "volumes": {"volumes": [{"claim": "data", "path": "/data"}]},
    "queue": {"queue": "team"},
    "submit_retries": {"submit_retries": 2},
    "idle_seconds": {"idle_seconds": 60},
    "keep_cluster_seconds": {"keep_cluster_seconds": 60},
    "head.node_labels": {"head": {"node_labels": {"a": "b"}}},
    "head.tolerations": {"head": {"tolerations": [{"key": "a"}]}},
    "head.priority_class": {"head": {"priority_class": "high"}},
    "groups.node_labels": {"groups": [{**TRAIN, "node_labels": {"a": "b"}}]},
    "groups.tolerations": {"groups": [{**TRAIN, "tolerations": [{"key": "a"}]}]},
    "groups.gpu_resource": {"groups": [{**TRAIN, "gpu_resource": "amd.com/gpu"}]},
    "groups.min_nodes": {"groups": [{**TRAIN, "min_nodes": 1}]},
}
"""Keys that neither target can express."""
CANNOT_BY = {
    "skypilot": CANNOT
    | {"deadline_seconds": {"deadline_seconds": 60}, "head.labels": {"head": {"labels": {"a": "b"}}}},
    "dstack": CANNOT,
}
CAN = {"image", "ray_version", "head", "groups", "env", "secret_names", "token_auth", "grace_seconds", "start_seconds"}
CAN |= {"spot_nodes"}  # how Kubernetes knows spot nodes; `spot` itself says what to rent
CAN |= {
    f"groups.{key}" for key in ("name", "nodes", "cpus", "memory_gib", "labels", "gpus", "gpu_kind", "roles", "spot")
}
CAN |= {"head.cpus", "head.memory_gib", "retries"}
CAN_BY = {"skypilot": CAN, "dstack": CAN | {"deadline_seconds", "head.labels"}}


@pytest.mark.parametrize("target", ["skypilot", "dstack"])
def test_every_key_is_expressed_or_refused(target):
    keys = set(ClusterConfig.model_fields) | {f"head.{key}" for key in HeadConfig.model_fields}
    keys |= {f"groups.{key}" for key in GroupConfig.model_fields}
    assert keys == CAN_BY[target] | set(REFUSED_BY[target]) and not CAN_BY[target] & set(REFUSED_BY[target])
    assert set(CANNOT_BY[target]) == set(REFUSED_BY[target])


@pytest.mark.parametrize(("target", "key"), [(target, key) for target, keys in CANNOT_BY.items() for key in keys])
def test_a_key_that_cannot_be_expressed_is_refused_with_its_cure(target, key):
    (said,) = refusal(target, **CANNOT_BY[target][key])
    assert said.startswith(f"{key} ") and any(cure in said for cure in ("leave", "name the variables"))


OWN = {
    "groups": ("skypilot", {"groups": [TRAIN, DATA]}, "groups (2): SkyPilot makes equal nodes"),
    "kind": ("skypilot", {"groups": [{**TRAIN, "gpu_kind": None}]}, "set gpu_kind, such as H100"),
    "no name": ("skypilot", {"groups": [{**TRAIN, "gpu_kind": "fast"}]}, "gpu_kind (fast) is no name of a GPU"),
    "cpus": ("skypilot", {"head": {"cpus": 32}}, "give more cpus than head.cpus (32)"),
    "memory": ("skypilot", {"head": {"memory_gib": 128}}, "give more memory_gib than head.memory_gib (128)"),
    "spot": (
        "dstack",
        {"groups": [TRAIN, {**DATA, "spot": True}], "spot_nodes": SPOT},
        "groups: dstack has one spot policy for all nodes of a run; set spot alike in all groups",
    ),
    "retries": ("dstack", {"retries": 2}, "retries (2): dstack counts no retries"),
    "head": (
        "dstack",
        {"groups": [{**TRAIN, "name": "head"}]},
        "groups (head): on dstack this is the name of the head",
    ),
}


@pytest.mark.parametrize("name", OWN)
def test_what_one_target_cannot_do_is_refused(name):
    target, changes, says = OWN[name]
    (said,) = refusal(target, **changes)
    assert says in said


def test_cpus_of_the_head_are_missing_on_skypilots_first_node():
    tight = {"groups": [{**TRAIN, "nodes": 1, "cpus": 9, "roles": {}, "gpus": 2}], "head": {"cpus": 4}}
    run = run_config("resources.workers=1", "resources.cpus_per_worker=6")
    written("kuberay", run, cluster_config(**{**FULL, **tight, "secret": "s"}), standing=False)
    with pytest.raises(ValueError) as raised:
        written("skypilot", run, cluster_config(**{**FULL, **tight}), standing=False)
    assert "on SkyPilot head.cpus (4) are taken from the first node" in sentences(raised.value)[0]


def test_dstack_replaces_nothing_in_the_config_of_a_run():
    with pytest.raises(ValueError, match="which dstack would replace"):
        task("dstack", "tracking.tags={note: '${{ secrets.x }}'}")


def test_only_kubernetes_has_clusters_that_stay_and_names_of_secrets_need_a_secret():
    for target in ("skypilot", "dstack"):
        with pytest.raises(ValueError, match="--standing is for kuberay"):
            written(target, run_config(), cluster_config(), standing=True)
    with pytest.raises(ValueError, match="name it: secret"):
        written("kuberay", run_config(), cluster_config(secret_names=["A"]), standing=False)


def test_a_config_that_is_too_long_for_an_argument_is_refused():
    many = ",".join(f"{{uri: 's3://bucket/{'a' * 60}-{i}.tar'}}" for i in range(1500))
    for target in ("skypilot", "dstack"):
        with pytest.raises(ValueError, match="bytes, a task holds 90,000: name the sources by patterns"):
            task(target, f"data.sources=[{many}]")


def refusal(target: str, **changes) -> list[str]:
    with pytest.raises(ValueError) as raised:
        written(target, run_config(*ROLES), override(ClusterConfig, {**BASE, **FULL, **changes}, {}), standing=False)
    return sentences(raised.value)

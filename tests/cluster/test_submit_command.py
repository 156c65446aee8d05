"""`tips-ray submit` prints manifests, or one sentence for each reason why the run cannot work on the cluster."""

import argparse
import re
import shlex

import pytest
import yaml
from manifests import BASE, CONFIGS, GROUP, ON_S3, PHOTOS, ROOT, SPOT

from jobs.cli import main
from jobs.submit import TARGETS, add_arguments

CAPTIONER = "captions.captioner={model: google/paligemma-3b-mix-224}"
LIVE = ("captions.source=live", CAPTIONER, "resources.captioners=2")


@pytest.fixture
def submitted(tmp_path, capsys):
    """Calls the command; returns its exit code, output and errors."""

    def submit(*overrides: str, **changes):
        path = tmp_path / "cluster.yaml"
        path.write_text(yaml.safe_dump({**BASE, **changes}))
        code = main(["submit", "--to", "kuberay", "--cluster", str(path), str(PHOTOS), *ON_S3, *overrides])
        return code, *capsys.readouterr()

    return submit


def test_it_prints_yaml_and_one_line_about_what_to_do_next(submitted):
    code, output, errors = submitted()
    kinds = [made["kind"] for made in yaml.safe_load_all(output)]
    assert code == 0 and kinds == ["ConfigMap", "PodDisruptionBudget", "RayJob"]
    assert errors.count("\n") == 1 and "kubectl create -f -" in errors


def test_a_standing_cluster_has_no_job(capsys):
    assert main(["submit", "--to", "kuberay", "--standing", str(PHOTOS), *ON_S3]) == 0
    assert [made["kind"] for made in yaml.safe_load_all(capsys.readouterr().out)] == [
        "PodDisruptionBudget",
        "RayCluster",
    ]


def test_the_heterogeneous_cluster_takes_a_run_with_roles(capsys):
    path, roles = str(CONFIGS / "heterogeneous.yaml"), ("resources.roles=true", "resources.gpus_per_worker=1", *LIVE)
    assert main(["submit", "--to", "kuberay", "--cluster", path, str(PHOTOS), *ON_S3, *roles]) == 0
    assert '"AWS' not in capsys.readouterr().out


def test_an_unknown_target_is_told_what_there_is(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["submit", "--to", "slurm", str(PHOTOS)])
    assert ended.value.code == 2 and "choose from 'kuberay'" in capsys.readouterr().err


SMALL = {"groups": [{**GROUP, "cpus": 4, "gpus": 0, "nodes": 2}]}
VOLUME = {"volumes": [{"claim": "data", "path": "/data", "read_only": True}]}
MISFITS = {
    "too few GPUs": (["resources.gpus_per_worker=1"], {}, "need 2 GPUs, the cluster's config offers 1"),
    "too few CPUs": (["resources.cpus_per_worker=4"], {}, "need 9 CPUs, the cluster's config offers 8"),
    "no node for a worker": (
        ["resources.workers=1", "resources.cpus_per_worker=6"],
        SMALL,
        "a worker needs 6 CPUs on one node, and the cluster's config has no such node",
    ),
    "workers in pieces": (
        ["resources.workers=2", "resources.cpus_per_worker=3"],
        {"groups": [{**GROUP, "cpus": 5}, {**GROUP, "cpus": 2, "name": "b"}]},
        "2 workers need 3 CPU each, and the cluster's config has room for 1",
    ),
    "captioners": (
        [*LIVE, "resources.gpus_per_captioner=1"],
        {},
        "captioners (2) x gpus_per_captioner (1) need 2 GPUs",
    ),
    "captioners in pieces": (
        [*LIVE, "resources.gpus_per_captioner=2"],
        {"groups": [{**GROUP, "gpus": 3}, {**GROUP, "gpus": 1, "name": "b"}]},
        "2 captioners need 1 CPU and 2 GPU each, and the cluster's config has room for 1",
    ),
    "a role that nobody offers": (
        ["resources.roles=true"],
        {"groups": [{**GROUP, "roles": {"data": 4}}]},
        "need 2 of train, the cluster's config offers 0",
    ),
    "roles that nobody uses": ([], {"groups": [{**GROUP, "roles": {"train": 1}}]}, "set resources.roles=true"),
    "local storage": (["storage=out/runs"], {}, "storage (out/runs) is a path that the pods do not have"),
    "local data": (["data.sources=[{uri: photos}]"], {}, "data.sources.0.uri (photos) is a path"),
    "beside the volume": (["storage=/data2/runs"], VOLUME, "storage (/data2/runs) is a path"),
    "read-only storage": (["storage=/data/runs"], VOLUME, "storage (/data/runs) is on a volume with read_only"),
    "a password": (["tracking.mlflow_uri=https://me:pass@mlflow"], {}, "tracking.mlflow_uri holds a user and a pass"),
    "no time to save": ([], {"grace_seconds": 60}, "raise it to 130, or lower leave_seconds"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_a_run_that_cannot_work_is_told_so_before_anything_is_printed(submitted, name):
    overrides, changes, says = MISFITS[name]
    code, output, errors = submitted(*overrides, **changes)
    assert (code, output) == (2, "") and errors.count("\n") == 1 and says in errors, errors


def test_an_elastic_run_needs_room_for_its_fewest_workers(submitted):
    elastic = ("resources.workers=8", "resources.min_workers=1", "resources.gpus_per_worker=1")
    assert submitted(*elastic)[0] == 0
    assert submitted(*elastic, "resources.min_workers=2")[0] == 2


def test_storage_and_data_may_be_on_a_volume(submitted):
    changes = {"volumes": [{"claim": "data", "path": "/data"}], "spot_nodes": SPOT}
    assert submitted("storage=/data/runs", "data.sources=[{uri: /data/photos}]", **changes)[0] == 0


def test_commands_of_the_docs_are_commands():
    lines = (ROOT / "docs" / "cluster.md").read_text().splitlines()
    commands = [
        shlex.split(line.partition(">")[0])[2:] for line in lines if line.startswith(".venv/bin/tips-ray submit")
    ]
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert {parser.parse_intermixed_args(command).to for command in commands} == set(TARGETS)


def test_files_that_the_docs_name_are_there():
    text = (ROOT / "docs" / "cluster.md").read_text()
    named = set(re.findall(r"(?<![/\w])cluster/[\w/.-]+\.(?:yaml|sh|sbatch|py)\b|\bcluster/Dockerfile\b", text))
    assert len(named) > 8 and all((ROOT / name).is_file() for name in named), named

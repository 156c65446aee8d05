"""Config of a cluster: image, head, groups of equal nodes, credentials by name, deadlines. One source for all files."""

import re
from importlib.metadata import version
from typing import Annotated, Literal, Self

from packaging.version import InvalidVersion, Version
from pydantic import Field, NonNegativeInt, PositiveInt, StringConstraints, field_validator, model_validator

from tips_ray.config.schema import Schema

LABEL_NAME = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
LabelKey = Annotated[str, StringConstraints(pattern=rf"^([a-z0-9]([-a-z0-9.]{{0,251}}[a-z0-9])?/)?{LABEL_NAME}$")]
LabelValue = Annotated[str, StringConstraints(pattern=rf"^({LABEL_NAME})?$")]
Labels = dict[LabelKey, LabelValue]
ObjectName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")]
"""Name of a Kubernetes object that already exists."""
GroupName = Annotated[str, StringConstraints(pattern=r"^[a-z]([-a-z0-9]{0,28}[a-z0-9])?$")]
EnvName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Role = Literal["train", "data", "caption"]
DRAIN_MARGIN_SECONDS = 10
"""How much earlier than its pod a node of Ray ends, so that Ray's own end fits into the grace period."""
QUEUED_GROUPS = 6
"""Most groups of nodes under Kueue: its workload has eight parts, of which head and submitter take two."""
LOOKS_SECRET = re.compile(r"KEY|SECRET|TOKEN|PASSW|CREDENTIAL")
OWN_ENV = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "RAY_JOB_STOP_WAIT_TIME_S", "RAY_ADDRESS", "RAY_AUTH_MODE"}
REFUSED_ENV = {"RAY_REDIS_ADDRESS", "REDIS_USERNAME", "REDIS_PASSWORD", "RAY_enable_autoscaler_v2"}
CONFIG_FOLDER = "/config"
"""Where the run's config is mounted in the head."""


class TolerationConfig(Schema):
    """A taint of Kubernetes nodes that the pods tolerate."""

    key: LabelKey
    value: LabelValue | None = None
    """None: any value."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """None: all effects."""


class VolumeConfig(Schema):
    """A persistent volume claim that is mounted in every pod."""

    claim: ObjectName
    path: Annotated[str, StringConstraints(pattern=r"^/[^:,]*[^:,/]$")]
    """Where it is mounted; paths of a run's config below it are the same on all nodes."""
    read_only: bool = False


class PodConfig(Schema):
    """What the head and the nodes of groups have in common."""

    cpus: PositiveInt
    memory_gib: PositiveInt
    labels: Labels = {}
    """Labels of the Ray node."""
    node_labels: Labels = {}
    """Labels that a Kubernetes node must have to run the pod."""
    tolerations: tuple[TolerationConfig, ...] = ()

    @field_validator("labels")
    @classmethod
    def _labels_are_free(cls, labels: dict[str, str]) -> dict[str, str]:
        if taken := [key for key in labels if key.startswith("ray.io/")]:
            raise ValueError(f"({taken[0]}) starts with ray.io/, which Ray keeps for itself; give it another name")
        return labels


class HeadConfig(PodConfig):
    """The head: it runs the driver and no workers. It never runs on spot nodes."""

    cpus: PositiveInt = 4
    memory_gib: PositiveInt = 16
    priority_class: ObjectName | None = None
    """PriorityClass of the pod, so that it is the last to be evicted."""


class GroupConfig(PodConfig):
    """Equal nodes: one pod, one Ray node."""

    name: GroupName
    nodes: PositiveInt = 1
    """Number of nodes; with `min_nodes`, the largest number."""
    min_nodes: NonNegativeInt | None = None
    """Smallest number of nodes: the autoscaler adds and removes the others. None: always `nodes`."""
    gpus: NonNegativeInt = 0
    """GPUs of each node."""
    gpu_kind: LabelValue | None = None
    """Required value of the node label `nvidia.com/gpu.product`, such as `NVIDIA-H100-80GB-HBM3`; None: any."""
    gpu_resource: LabelKey = "nvidia.com/gpu"
    """How Kubernetes calls the GPUs; nodes may be tainted with it."""
    roles: dict[Role, PositiveInt] = {}
    """Work that each node takes at a time when the run has `resources.roles`: `{train: 8}` for 8 workers."""
    spot: bool = False
    """Use nodes that may be taken away (`spot_nodes`), and no others."""

    @property
    def fewest(self) -> int:
        return self.nodes if self.min_nodes is None else self.min_nodes

    @property
    def ray_resources(self) -> dict[str, float]:
        """Ray resources of each node."""
        return {"CPU": float(self.cpus), "GPU": float(self.gpus), **{role: float(n) for role, n in self.roles.items()}}

    @model_validator(mode="after")
    def _fewest_are_fewer(self) -> Self:
        if self.fewest > self.nodes:
            raise ValueError(f"min_nodes ({self.min_nodes}) must be at most nodes ({self.nodes})")
        if self.gpu_kind and not self.gpus:
            raise ValueError(f"gpu_kind ({self.gpu_kind}) needs gpus: give the number of GPUs of each node")
        return self


class ClusterConfig(Schema):
    """A Ray cluster on Kubernetes, SkyPilot or dstack. Names of secrets and accounts are in it, their values never."""

    image: Annotated[str, StringConstraints(pattern=r"^\S+$")]
    """Container image of all pods, with `tips-ray` and Ray in it; its tag or digest must stay the same image."""
    image_pull_secret: ObjectName | None = None
    ray_version: str | None = None
    """Version of Ray in the image; None: the one that is installed here."""
    namespace: ObjectName | None = None
    """None: that of the kubectl command."""
    head: HeadConfig = HeadConfig()
    groups: Annotated[tuple[GroupConfig, ...], Field(min_length=1)]
    spot_nodes: Labels = {}
    """Labels that all spot nodes have, and no others: `{karpenter.sh/capacity-type: spot}` on EKS,
    `{cloud.google.com/gke-spot: "true"}` on GKE. Head and other groups stay off them."""
    env: dict[EnvName, str] = {}
    """Environment variables that are no secrets, such as AWS_ENDPOINT_URL."""
    secret: ObjectName | None = None
    """Kubernetes secret whose entries become environment variables, such as AWS_ACCESS_KEY_ID."""
    secret_names: tuple[EnvName, ...] = ()
    """Environment variables that hold secrets, such as AWS_SECRET_ACCESS_KEY: SkyPilot and dstack ask for their values,
    on Kubernetes they are entries of `secret`."""
    service_account: ObjectName | None = None
    """Service account of the pods, where the cloud gives it access to the storage."""
    volumes: tuple[VolumeConfig, ...] = ()
    token_auth: bool = True
    """Whether Ray takes requests only with a token; KubeRay makes it and keeps it in a secret."""
    grace_seconds: Annotated[int, Field(gt=DRAIN_MARGIN_SECONDS)] = 150
    """(D) Time between the request to end a pod and its kill: two steps and a checkpoint must fit into it."""
    start_seconds: PositiveInt = 3600
    """(D) Longest time until the driver runs, nodes and images included; after it the job fails."""
    deadline_seconds: PositiveInt | None = None
    """Longest time of the whole job; None: any."""
    retries: NonNegativeInt = 3
    """(D) How often the job may be started again, each time on a new cluster; the run then resumes."""
    submit_retries: NonNegativeInt = 6
    """(D) How often handing over the job may fail while the dashboard of the head starts."""
    keep_cluster_seconds: NonNegativeInt = 3600
    """(D) How long the head stays after the end, with its logs; nodes of a fixed-size cluster leave at once."""
    idle_seconds: PositiveInt = 300
    """(D) With `min_nodes`: a node without work leaves after this time."""
    queue: ObjectName | None = None
    """Local queue of Kueue; None: the cluster is made at once."""

    @property
    def autoscales(self) -> bool:
        return any(group.fewest < group.nodes for group in self.groups)

    @property
    def drain_seconds(self) -> int:
        """Time that Ray gives workers to save and leave, before their node ends."""
        return self.grace_seconds - DRAIN_MARGIN_SECONDS

    @property
    def ray(self) -> str:
        """Version of Ray on the cluster."""
        return self.ray_version or version("ray")

    @field_validator("image")
    @classmethod
    def _image_stays(cls, image: str) -> str:
        _, _, tag = image.rpartition("/")[2].partition(":")
        if tag in ("", "latest"):
            raise ValueError(f"({image}): a retry may get another image; add a tag that stays, such as :0.1.0")
        return image

    @field_validator("ray_version")
    @classmethod
    def _ray_is_ours(cls, given: str | None) -> str | None:
        try:
            differs = given is not None and Version(given).release[:2] != Version(version("ray")).release[:2]
        except InvalidVersion:
            raise ValueError(f"({given}) is no version; write it as {version('ray')}") from None
        if differs:
            raise ValueError(f"({given}): this tips_ray is made for Ray {version('ray')}; use an image with it")
        return given

    @field_validator("env")
    @classmethod
    def _env_is_no_secret(cls, env: dict[str, str]) -> dict[str, str]:
        for name in env:
            if LOOKS_SECRET.search(name.upper()):
                raise ValueError(f"({name}) looks like a secret; put it into a Kubernetes secret and name that: secret")
            if name in OWN_ENV:
                raise ValueError(f"({name}) is set from other keys, such as grace_seconds; leave it out")
            if name in REFUSED_ENV:
                raise ValueError(f"({name}) is refused by KubeRay; leave it out")
        return env

    @model_validator(mode="after")
    def _groups_are_told_apart(self) -> Self:
        names = [group.name for group in self.groups]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"groups ({min(twice)}): two groups have this name; give each its own")
        if unknown := [group.name for group in self.groups if group.spot and not self.spot_nodes]:
            raise ValueError(f"groups ({unknown[0]}): spot needs spot_nodes: give the labels of spot nodes")
        return self

    @model_validator(mode="after")
    def _queue_knows_the_size(self) -> Self:
        if self.queue and self.autoscales:
            raise ValueError(f"queue ({self.queue}): Kueue takes clusters of a fixed size alone; leave out min_nodes")
        if self.queue and len(self.groups) > QUEUED_GROUPS:
            raise ValueError(f"groups ({len(self.groups)}): Kueue takes at most {QUEUED_GROUPS}; join some of them")
        if self.queue and "head" in [group.name for group in self.groups]:
            raise ValueError("groups (head): Kueue keeps this name for the head; give the group another one")
        return self

    @model_validator(mode="after")
    def _volumes_are_apart(self) -> Self:
        paths = [volume.path for volume in self.volumes]
        for path in paths:
            if paths.count(path) > 1 or path == CONFIG_FOLDER or path.startswith(f"{CONFIG_FOLDER}/"):
                raise ValueError(f"volumes ({path}): something else is mounted there; choose another path")
        return self

"""Checks of this machine, one function each: Python, packages, accelerator, memory, disk, files, Ray, S3.

A check raises ValueError where a run would fail, CheckWarning where it would only run worse. No secret is ever shown.
Packages that a check may find missing are imported inside functions, so that the others still run.
"""

import email.utils
import os
import resource
import shutil
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tips_ray import storage
from tips_ray.errors import CheckResult, CheckWarning, Faults, check_results
from tips_ray.launch import cluster
from tips_ray.launch.surroundings import surroundings

PACKAGE = "tips-ray"
FEW_BYTES_OF_DISK, FEW_BYTES_OF_MEMORY, FEW_FILES = 10 * 10**9, 4 * 2**30, 8192
ANSWER_SECONDS = 4
MOST_SKEW_SECONDS = 15 * 60
"""S3 refuses requests whose time is further off."""


def machine_checks() -> dict[str, Callable[[], str]]:
    """All checks of a machine by displayed name, in the order of display."""
    return {
        "python": python_fits,
        "packages": packages_fit,
        **surroundings(),
        "torchvision": torchvision_fits,
        "accelerator": accelerator_answers,
        "machine": machine_is_large_enough,
        "disk": disk_has_room,
        "open files": files_may_be_opened,
        "demo": demo_server_can_run,
        "ray": ray_answers,
        "s3 settings": settings_are_whole,
        "s3 store": store_answers,
    }


def run_results(path: Path, overrides: list[str]) -> Iterator[CheckResult]:
    """Results of the checks that a run of this config makes before it starts, or the faults of the config itself."""
    loaded = []

    def load() -> str:
        from tips_ray.config import RunConfig, load_config

        loaded.append(load_config(RunConfig, path, overrides))
        return f"{path} is valid"

    yield from check_results("config", load)
    if loaded:
        from tips_ray.launch.checks import preflight

        yield from preflight(loaded[0]).results


def python_fits() -> str:
    """This Python is in the range that the package declares."""
    from packaging.specifiers import SpecifierSet

    here, wanted = sys.version.split()[0], metadata.metadata(PACKAGE)["Requires-Python"]
    if here not in SpecifierSet(wanted):
        raise ValueError(f"Python {here} is too old or too new, it must be {wanted}: make the environment with another")
    return f"{here} (needs {wanted})"


def packages_fit() -> str:
    """Every dependency is installed in its declared range."""
    needed = list(_requirements())
    faults = [fault for requirement in needed if (fault := _fault(requirement))]
    if faults:
        raise Faults(faults)
    return f"all {len(needed)} that {PACKAGE} {metadata.version(PACKAGE)} declares are in their ranges"


def _requirements() -> Iterator:
    from packaging.requirements import Requirement

    for line in metadata.requires(PACKAGE) or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement


def _fault(requirement) -> str | None:
    wanted = f"pip install '{requirement.name}{requirement.specifier}'"
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"{requirement.name} is not installed: {wanted}"
    if requirement.specifier.contains(version, prereleases=True):
        return None
    return f"{requirement.name} {version} is installed, it must be {requirement.specifier}: {wanted}"


def torchvision_fits() -> str:
    """torchvision is compiled for one release of torch; timm imports it."""
    torch, vision = metadata.version("torch"), metadata.version("torchvision")
    try:
        import timm
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        raise ValueError(
            f"torchvision {vision} was built for another torch than {torch}: pip install --upgrade torch torchvision"
        ) from None
    return f"torch {torch}, torchvision {vision} and timm {timm.__version__} import together"


def accelerator_answers() -> str:
    """Accelerators that torch sees; fails if torch cannot use a card of this machine."""
    import torch

    if torch.accelerator.is_available():
        kind, count = torch.accelerator.current_accelerator(), torch.accelerator.device_count()
        name = torch.cuda.get_device_name() if torch.cuda.is_available() else str(kind)
        return f"{count} x {name} (torch for CUDA {torch.version.cuda})"
    if Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi"):
        raise ValueError(
            f"there is an NVIDIA card that torch {torch.__version__} cannot use: its driver is too old for CUDA "
            f"{torch.version.cuda or '(this torch has none)'}; update the driver, or install a torch for it"
        )
    return "none; training runs on CPUs"


def machine_is_large_enough() -> str:
    """Cores and memory of this machine; warns if memory is small."""
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    text = f"{cluster.cores()} cores, {size / 2**30:.0f} GiB of memory"
    if size < FEW_BYTES_OF_MEMORY:
        raise CheckWarning(
            f"{text}; Ray with two workers takes {FEW_BYTES_OF_MEMORY / 2**30:.0f}: set resources.workers=1"
        )
    return text


def disk_has_room(path: str = ".") -> str:
    """Checkpoints and reports go below the working directory by default, Ray's logs and spilled blocks to /tmp."""
    free = shutil.disk_usage(path).free
    if free < FEW_BYTES_OF_DISK:
        raise CheckWarning(
            f"{free / 1e9:.1f} GB are free in {os.path.abspath(path)}: free some, or set storage elsewhere"
        )
    temporary = shutil.disk_usage(tempfile.gettempdir())
    if temporary.free < 0.05 * temporary.total:
        raise CheckWarning(
            f"{tempfile.gettempdir()} is over 95 % full, where Ray stops spilling: free some, or set RAY_TMPDIR"
        )
    return f"{free / 1e9:,.0f} GB free in {os.path.abspath(path)}"


def files_may_be_opened() -> str:
    """The hard limit suffices; Ray raises the soft limit to it by itself."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < FEW_FILES:
        raise CheckWarning(
            f"at most {hard} files may be open, Ray wants {FEW_FILES}: ulimit -Hn 65536, or --ulimit of docker"
        )
    return f"up to {'any number of' if hard == resource.RLIM_INFINITY else hard} open files"


def demo_server_can_run(folder: str = ".") -> str:
    """The S3 server of demo and tests keeps metadata in extended attributes."""
    if find_spec("swift") is None:
        raise CheckWarning("the S3 server of tips-ray demo needs the package swift: pip install swift (Linux)")
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        try:
            os.setxattr(file.name, "user.tips_ray", b"1")
        except OSError as error:
            where = os.path.abspath(folder)
            raise CheckWarning(
                f"{where} has no extended attributes ({error.strerror}): tips-ray demo FOLDER elsewhere"
            ) from None
    return f"swift {metadata.version('swift')} is there, files here take extended attributes"


def ray_answers() -> str:
    """The cluster that a run would join answers."""
    given = cluster.address()
    if given is None:
        return f"ray {metadata.version('ray')} starts on this machine (RAY_ADDRESS is not set)"
    cluster.require_cluster()
    return f"RAY_ADDRESS ({given}) answers"


def settings_are_whole() -> str:
    """Credentials, region and endpoint fit together; boto3's own chain finds the credentials."""
    session, endpoint = _session(), _given_endpoint()
    credentials, region = session.get_credentials(), _region(session)
    if credentials is None and endpoint is None:
        return "no endpoint and no credentials are set: local paths only"
    if credentials is None:
        raise ValueError(
            f"AWS_ENDPOINT_URL ({endpoint}) is set, and no credentials are found: set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run under a role"
        )
    if region is None and endpoint is None:
        raise CheckWarning("no region is set, and AWS wants one: set AWS_DEFAULT_REGION")
    return f"credentials by {credentials.method}, region {region or 'not set'}, endpoint {_endpoint(session)}"


def store_answers() -> str:
    """Ask once without credentials; any answer will do, and its Date shows how far the clocks are apart."""
    session = _session()
    if _given_endpoint() is None and session.get_credentials() is None:
        return "not asked"
    endpoint = _endpoint(session)
    try:
        headers = _headers(endpoint)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise ValueError(
            f"the store ({endpoint}) does not answer ({reason}): check AWS_ENDPOINT_URL and the network"
        ) from None
    sent = email.utils.parsedate_to_datetime(headers["Date"]).timestamp() if headers["Date"] else time.time()
    skew = abs(time.time() - sent)
    if skew > MOST_SKEW_SECONDS:
        raise ValueError(f"the clock of this machine is {skew:.0f} s apart from the store's: set it (chrony, ntpd)")
    return f"{endpoint} answers, its clock is {skew:.0f} s apart"


def _headers(endpoint: str) -> Any:
    try:
        with urllib.request.urlopen(endpoint, timeout=ANSWER_SECONDS) as response:
            return response.headers
    except urllib.error.HTTPError as error:  # it answers, if only to refuse
        return error.headers


def _session() -> Any:
    from boto3.session import Session

    return Session()


def _region(session: Any) -> str | None:
    return session.region_name or os.environ.get("AWS_REGION")


def _given_endpoint() -> str | None:
    given = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    return storage.without_credentials(given) or None


def _endpoint(session: Any) -> str:
    return _given_endpoint() or f"https://s3.{_region(session) or 'us-east-1'}.amazonaws.com"

"""Checks of what surrounds a process on its machine: loopback, proxies, home, temporary and working directory, ranks.

`tips-ray doctor` and every start make them. Each fault is a sentence with its cause and its cure.
"""

import ipaddress
import os
import shutil
import socket
import sys
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from tips_ray.errors import CheckWarning
from tips_ray.launch.hiding import nothing_hides_a_package

ANSWER_SECONDS = 4
KEPT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "1000000000", "MALLOC_TRIM_THRESHOLD_": "8000000000"}
"""Settings of glibc that keep freed memory; without them every step asks for new pages (see benchmarks/README.md)."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")
MOST_SOCKET_BYTES = 103 if sys.platform == "darwin" else 107
RANK_VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


def surroundings() -> dict[str, Callable[[], str]]:
    """All checks by displayed name."""
    return {
        "loopback": loopback_is_up,
        "proxies": proxies_spare_the_store,
        "working directory": nothing_hides_a_package,
        "shared memory": shared_memory_suffices,
        "ray sockets": sockets_have_short_names,
        "home": home_takes_rays_token,
        "ranks": ranks_are_whole,
    }


def loopback_is_up() -> str:
    """A process can connect to another one by 127.0.0.1, as those of Ray and of a process group do."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), ANSWER_SECONDS).close()
    except OSError as error:
        raise ValueError(
            f"this machine cannot connect to itself at 127.0.0.1 ({error.strerror or error}), which Ray and torch "
            "need: bring the interface up (ip link set lo up), or let the firewall pass it"
        ) from None
    return "127.0.0.1 answers"


def proxies_spare_the_store() -> str:
    """A store on a private address is not asked through a proxy; loopback never is, see `spare_loopback`."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    host = urlsplit(endpoint).hostname or ""
    proxy = urllib.request.getproxies().get(urlsplit(endpoint).scheme)
    if proxy and host and _is_private(host) and not urllib.request.proxy_bypass(host):
        raise ValueError(
            f"AWS_ENDPOINT_URL ({_without_user(endpoint)}) would be asked through the proxy {_without_user(proxy)}, "
            f"which is for addresses outside: add {host} to no_proxy (export no_proxy=$no_proxy,{host})"
        )
    return f"{_without_user(proxy)} is for addresses outside" if proxy else "none between here and the store"


def _is_private(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return host == "localhost" or "." not in host or host.endswith((".local", ".internal", ".lan"))


def _without_user(url: str) -> str:
    """The URL of a proxy or store without its user and password."""
    return f"{url.partition('://')[0]}://{url.rpartition('@')[2].rpartition('://')[2]}"


def spare_loopback() -> None:
    """Let no proxy of the environment get requests to this machine, neither from here nor from processes of ours."""
    if not urllib.request.getproxies_environment():
        return
    given = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    missing = [host for host in LOOPBACK if host not in given.replace(" ", "").split(",")]
    if given != "*":
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join([*filter(None, [given]), *missing])


def _has_cluster() -> bool:
    from tips_ray.launch import cluster  # imports pydantic, which a file may hide

    return cluster.address() is not None


def shared_memory_suffices(path: str = "/dev/shm") -> str:
    """The object store of a Ray that starts here fits into `path`; otherwise Ray keeps it in a file of /tmp."""
    if _has_cluster():
        return "Ray runs elsewhere (RAY_ADDRESS)"
    if not os.path.isdir(path):
        return f"no {path} here; Ray uses files"
    from tips_ray.launch.cluster import OBJECT_STORE_BYTES

    free, needed = shutil.disk_usage(path).free, OBJECT_STORE_BYTES
    text = f"{path} has {free / 2**30:.1f} GiB free, the object store of a run here takes {needed / 2**30:.1f} or more"
    if free < needed:
        raise CheckWarning(
            f"{text}: Ray will use slow files; give the container more, such as docker run --shm-size=2g"
        )
    return text


def sockets_have_short_names() -> str:
    """Sockets of a Ray that starts here have names that the system takes."""
    if _has_cluster():
        return "Ray runs elsewhere (RAY_ADDRESS)"
    key = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), "TMPDIR")
    place = os.environ.get(key, "/tmp")
    name = f"{place}/ray/session_2026-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store"
    over = len(os.fsencode(name)) - MOST_SOCKET_BYTES
    if over > 0:
        raise ValueError(
            f"{key} ({place}) is {over} characters too long for the sockets of Ray, whose names may have "
            f"{MOST_SOCKET_BYTES}: set RAY_TMPDIR to a short folder, such as /tmp"
        )
    return f"below {place}, {-over} characters to spare"


def home_takes_rays_token() -> str:
    """A Ray that starts here keeps its token in ~/.ray, unless one is given or none is used."""
    if _has_cluster() or os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return "Ray writes no token"
    given = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    folder = Path.home() / ".ray"
    if given or os.access(folder / "auth_token", os.R_OK):
        return "Ray has its token"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(
            f"HOME ({Path.home()}) cannot be written ({error.strerror}), where Ray keeps its token: set HOME to a "
            "folder that can, or RAY_AUTH_MODE=disabled on a machine that you share with nobody"
        ) from None
    return f"{folder} takes Ray's token"


def ranks_are_whole() -> str:
    """The variables of torchrun are numbers and all there, or not set; empty ones count as not set.

    Raises:
        ValueError: one is no number, or only some are there.
    """
    given = {name: os.environ[name] for name in RANK_VARIABLES if os.environ.get(name)}
    for name, text in given.items():
        if not text.isdigit():
            raise ValueError(f"{name} ({text}) must be a number: unset it, or start the ranks with torchrun")
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if int(given.get("WORLD_SIZE", 1)) > 1 and missing:
        raise ValueError(
            f"WORLD_SIZE ({given['WORLD_SIZE']}) is set and {', '.join(missing)} not: unset WORLD_SIZE, or start the "
            "ranks with torchrun, which sets all of them"
        )
    return f"{given['WORLD_SIZE']} of torchrun" if "WORLD_SIZE" in given else "none of torchrun"


def drop_empty_ranks() -> None:
    """Unset the variables of torchrun that are empty, as container images leave them.

    Raises:
        ValueError: the others make no ranks.
    """
    for name in RANK_VARIABLES:
        if os.environ.get(name) == "":
            del os.environ[name]
    ranks_are_whole()

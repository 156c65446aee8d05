"""Names of objects on a cluster: readable, unique for a run, and valid everywhere."""

import hashlib
import re

LONGEST_NAME = 47
"""KubeRay's limit: it adds to a RayJob's name, and DNS labels end at 63 characters."""
HASH_DIGITS = 8


def object_name(name: str, *identity: str) -> str:
    """DNS-1035 label of at most 47 characters: what can be read of `name`, and a hash.

    Args:
        name: any text, such as a run's name.
        identity: more that tells objects apart, such as the run's storage; equal arguments give equal names.
    """
    digest = hashlib.sha256("\0".join([name, *identity]).encode("utf-8", "surrogatepass")).hexdigest()[:HASH_DIGITS]
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).lstrip("-0123456789")
    slug = slug[: LONGEST_NAME - HASH_DIGITS - 1].strip("-") or "run"
    return f"{slug}-{digest}"

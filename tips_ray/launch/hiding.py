"""Files of the working directory that hide a module which a run imports.

Of Python's own modules this imports only those that are loaded when Python starts, so that it can tell of the others.
"""

import os
import sys
from importlib.util import find_spec

from tips_ray.errors import listed

PACKAGES = ("boto3", "botocore", "mlflow", "numpy", "PIL", "pyarrow", "pydantic", "ray", "timm", "tokenizers", "torch")
PACKAGES += ("torchvision", "transformers", "yaml", "pandas", "scipy", "simplejpeg", "sentencepiece", "safetensors")
LATER = ("cProfile", "cmath", "colorsys", "configparser", "difflib", "filecmp", "fileinput", "ftplib", "getpass")
LATER += ("graphlib", "gzip", "modulefinder", "pickletools", "pkgutil", "profile", "pstats", "pydoc", "socketserver")
LATER += ("sqlite3", "statistics", "sysconfig", "termios", "timeit", "unittest", "xml", "zoneinfo")
"""Modules of Python that a process of Ray imports after Ray has put the working directory first on its path."""


def nothing_hides_a_package() -> str:
    """No file of the working directory takes the place of a module that this process, or one of Ray, imports.

    Raises:
        ValueError: one does.
    """
    here = os.getcwd()
    if here == _root():
        return f"{here} is the place of tips_ray"
    loaded = {name for name in sys.stdlib_module_names if _is_from(sys.modules.get(name), here)}
    names = sorted({*PACKAGES, *LATER, *loaded})
    found = [f"{name}.py" for name in names if os.path.isfile(os.path.join(here, f"{name}.py"))]
    found += [f"{name}/__init__.py" for name in names if os.path.isfile(os.path.join(here, name, "__init__.py"))]
    if found:
        raise ValueError(
            f"{listed(found)} in the working directory ({here}) hides the module of this name from the processes of a "
            "run: rename it, or start from another folder"
        )
    return f"{here} hides no module that a run imports"


def leave_out_working_directory() -> None:
    """Look for no module in the working directory, here and in Python processes of ours; it may hold tips_ray itself.

    `python -m` and `python -c`, which starts data processes, look there first. Ray's processes do so in any case.
    """
    here = os.getcwd()
    if here == _root():
        return
    os.environ.setdefault("PYTHONSAFEPATH", "1")
    if sys.path[:1] in ([""], [here]):
        del sys.path[0]


def _root() -> str:
    """The folder in which tips_ray is found."""
    own = find_spec("tips_ray")
    return os.path.dirname(next(iter(own.submodule_search_locations or ()), "")) if own else ""


def _is_from(module: object, folder: str) -> bool:
    return os.path.dirname(getattr(module, "__file__", None) or "") in (folder, os.path.join(folder, _name(module)))


def _name(module: object) -> str:
    return getattr(module, "__name__", "")

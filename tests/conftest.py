"""Which tests run in one process when pytest-xdist deals them to several (make test-fast)."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file stays together, for its fixtures; so do those that start ranks, forked from one process."""
    for item in items:
        module = getattr(item, "module", None)
        group = "ranks" if hasattr(module, "run_on_ranks") else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))

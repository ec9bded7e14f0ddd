"""Shared by the tests on several hosts: the hosts themselves, and the mark that `make test` leaves out."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_hosts import Hosts, start_hosts


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """The hosts nodea, nodeb and head of this module's tests."""
    with start_hosts(tmp_path_factory.mktemp("cluster")) as started:
        yield started

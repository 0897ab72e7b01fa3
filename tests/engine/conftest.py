from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import pytest

from interlatent_live.bench.ray_cluster import RayCluster

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    if importlib.util.find_spec("ray") is None:  # importing it here would fix its settings
        pytest.skip("needs the extra ray")
    with RayCluster(nodes=3) as cluster:
        yield cluster

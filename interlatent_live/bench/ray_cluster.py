"""A Ray cluster of several nodes on this machine, whose nodes can be killed; token-protected.

For the benchmark and the tests: a node is a process group of Ray's, and killing it is as if its
machine had lost power.
"""

from __future__ import annotations

import logging
import os
import secrets
from typing import TYPE_CHECKING, Any, Final, Self

from interlatent_live.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

AUTHENTICATION: Final[Mapping[str, str]] = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
}
CLUSTER: Final[Mapping[str, int]] = {
    "health_check_initial_delay_ms": 5000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 2,
    "worker_niceness": 0,
}
"""A dead node is known to be one in two seconds, not in fourteen; and what actors start is not put
behind everything else on the machine, as by Ray's own niceness of 15."""


class RayCluster:
    """``nodes`` nodes beside a head without CPUs, and this process connected to them.

    A context manager; the environment gets Ray's token, which its processes inherit.

    Raises:
        UserError: when Ray is not installed.
    """

    def __init__(self, nodes: int, cpus: float = 2.0) -> None:
        self._cpus = cpus
        # Before Ray is imported, which reads them once.
        for name, value in {**AUTHENTICATION, "RAY_AUTH_TOKEN": secrets.token_hex(32)}.items():
            os.environ.setdefault(name, value)
        try:
            from ray.cluster_utils import Cluster  # noqa: PLC0415 - only with the extra
        except ImportError as error:
            raise UserError(
                "this needs the extra ray: pip install 'interlatent-live[ray]'"
            ) from error
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "include_dashboard": False,
                "_system_config": dict(CLUSTER),
            },
        )
        self._nodes: dict[str, Any] = {}
        for _ in range(nodes):
            self.add_node()
        self.address: str = self._cluster.address

    def __enter__(self) -> Self:
        import ray  # noqa: PLC0415 - only with the extra

        ray.init(address=self.address, log_to_driver=False, logging_level=logging.ERROR)
        return self

    def __exit__(self, *error: object) -> None:
        import ray  # noqa: PLC0415 - only with the extra

        ray.shutdown()
        cluster: Any = self._cluster
        cluster.shutdown()

    def add_node(self) -> str:
        """A further node; its id."""
        node = self._cluster.add_node(num_cpus=self._cpus)
        self._nodes[node.node_id] = node
        return str(node.node_id)

    def kill(self, node_id: str) -> str:
        """As when its machine lost power; returns its id."""
        self._cluster.remove_node(self._nodes.pop(node_id), allow_graceful=False)
        return node_id

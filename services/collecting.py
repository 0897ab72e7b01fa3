"""A running agent's own operation as the step batches that :func:`collect_stream` takes.

Raw activations travel from an agent to whom it sends its steps, and no further. So this takes the
encoder's place: it binds the endpoint, the agent connects to it as it would to an encoder, and rows
come under the same credit and acknowledgements, counted when lost. An agent cannot tell the
difference, and nothing is asked of it but the endpoint.
"""

from __future__ import annotations

from itertools import tee
from typing import TYPE_CHECKING, Final, Self

import zmq

from interlatent_live.errors import UserError
from interlatent_live.services.network import Network
from interlatent_live.services.receiving import RowReceiver
from interlatent_live.transcoders.collect import CollectProgress, collect_stream
from interlatent_live.wire.messages import StepsMessage
from interlatent_live.wire.receiver_link import Asked, Deliver
from interlatent_live.wire.security import Domain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from interlatent_live.services.receiving import Received
    from interlatent_live.stream import Manifest as StreamManifest
    from interlatent_live.stream import StepBatch
    from interlatent_live.transcoders.dataset import Manifest

COMMIT_ROWS: Final = 16_384
"""Rows that a killed process can cost, at most: they were acknowledged and do not come again."""
_POLL_MS: Final = 100


class LiveAgents:
    """Receives the steps of agents that run one policy; a context manager.

    Args:
        endpoint: to bind, such as ``tcp://127.0.0.1:28410``.
        keys: the key directory, or None on this machine alone.
        stopping: asked a few times a second whether to end.

    Raises:
        UserError: when the endpoint is taken or needs keys.
    """

    def __init__(self, endpoint: str, keys: Path | None, stopping: Callable[[], bool]) -> None:
        self._endpoint, self._stopping = endpoint, stopping
        self._network = Network(keys)
        self._first: StreamManifest | None = None

    def __enter__(self) -> Self:
        self._network.__enter__()
        try:
            self._receiver = RowReceiver(self._network, self._endpoint, "--live", Domain.AGENTS)
        except UserError:
            self._network.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._receiver.close()
        self._network.__exit__(None, None, None)

    def manifest(self) -> StreamManifest | None:
        """What the first agent says of itself; waits for one. None when told to stop before."""
        while self._first is None and not self._stopping():
            for received in self._turn():
                if isinstance(received, Asked) and self._answer(received):
                    break  # its rows, which come next, are for batches()
        return self._first

    def batches(self) -> Iterator[tuple[str, StepBatch]]:
        """Batches by boot as they come, until told to stop.

        A batch is acknowledged when the next one is asked for.
        """
        while not self._stopping():
            for received in self._turn():
                if isinstance(received, Asked):
                    self._answer(received)
                elif isinstance(received, Deliver):
                    if isinstance(received.message, StepsMessage):
                        yield received.boot_id, received.message.batch
                    self._receiver.processed(received.boot_id)

    def lost(self) -> int:
        """Rows that agents said they dropped, or that never came."""
        hub = self._receiver.hub
        counts = [hub.counts(boot_id) for boot_id in hub.streams()]
        return sum(sum(one.declared.values()) + one.undeclared for one in counts)

    def _turn(self) -> Iterator[Received]:
        self._receiver.socket.poll(_POLL_MS, zmq.POLLIN)
        yield from self._receiver.receive()
        yield from self._receiver.tick()

    def _answer(self, asked: Asked) -> bool:
        """Accept or refuse an agent; says which."""
        refusal = self._refusal(asked)
        if refusal is not None:
            self._receiver.refuse(asked, "mismatch", refusal)
            return False
        self._first = self._first or asked.hello.manifest
        self._receiver.accept(asked)
        return True

    def _refusal(self, asked: Asked) -> str | None:
        manifest, first = asked.hello.manifest, self._first
        if asked.hello.transcoders:
            return "this agent sends features; to collect from it, let it send activations"
        if first is None:
            return None
        if manifest.policy_hash != first.policy_hash:
            return (
                f"policy {manifest.policy_hash} is not {first.policy_hash}, which is being "
                "collected from; a transcoder belongs to one policy"
            )
        if (manifest.hook_points, manifest.metrics) != (first.hook_points, first.metrics):
            return "its hook points or metrics are not those that are being collected"
        return None


def collect_live(
    agents: LiveAgents,
    hook_points: Sequence[str],
    out: Path,
    *,
    max_rows: int | None = None,
    on_progress: Callable[[CollectProgress], None] | None = None,
) -> Manifest | None:
    """Write what running agents do as a dataset, until told to stop; a second call adds to it.

    Args:
        agents: entered; the first to come decides policy, hook points and metrics.
        hook_points: names; empty means all that the first agent streams.
        out: directory of the dataset.
        max_rows: stop after so many rows, those of earlier calls included.
        on_progress: told how far it is, at each commit.

    Returns:
        The dataset's manifest; None when it was told to stop before any agent came.

    Raises:
        MismatchError: when the agent has no such hook point.
        UserError: when the dataset at ``out`` is another policy's or agent's.
    """
    manifest = agents.manifest()
    if manifest is None:
        return None
    names = tuple(hook_points) or tuple(hook.name for hook in manifest.hook_points)
    for_boots, for_batches = tee(agents.batches())
    return collect_stream(
        (batch for _, batch in for_batches),
        manifest,
        names,
        out,
        boot_ids=(boot for boot, _ in for_boots),
        live=True,
        commit_rows=COMMIT_ROWS,
        max_rows=max_rows,
        on_progress=on_progress,
    )

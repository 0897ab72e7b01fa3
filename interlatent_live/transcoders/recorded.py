"""A recording of a running agent as the step batches that :func:`collect_stream` takes."""

from __future__ import annotations

from itertools import tee
from typing import TYPE_CHECKING

from interlatent_live.errors import UserError
from interlatent_live.recordings.reader import read_recording, recording_info
from interlatent_live.transcoders.collect import CollectProgress, collect_stream
from interlatent_live.wire.messages import StepsMessage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from interlatent_live.stream import Manifest as StreamManifest
    from interlatent_live.stream import StepBatch
    from interlatent_live.transcoders.dataset import Manifest


def collect_recording(
    recording: Path,
    hook_points: Sequence[str],
    out: Path,
    on_progress: Callable[[CollectProgress], None] | None = None,
) -> Manifest:
    """Turn a recording into a dataset; a second call goes on after a kill.

    Args:
        recording: an MCAP file with the agent's steps; one cut short counts as far as it goes.
        hook_points: names; empty means all that the agent streamed.
        out: directory of the dataset.
        on_progress: told how far it is.

    Raises:
        UserError: when the recording holds no steps with raw activations, or those of several
            policies.
        CorruptFileError: when it is damaged.
        MismatchError: when the agent has no such hook point.
    """
    manifest = _manifest(recording)
    names = tuple(hook_points) or tuple(hook.name for hook in manifest.hook_points)
    for_boots, for_batches = tee(_batches(recording))
    return collect_stream(
        (batch for _, batch in for_batches),
        manifest,
        names,
        out,
        boot_ids=(boot for boot, _ in for_boots),
        on_progress=on_progress,
    )


def _manifest(recording: Path) -> StreamManifest:
    boots = {message.boot_id for message in _steps(recording)}
    found = [
        info.manifest
        for boot, info in recording_info(recording).streams.items()
        if boot in boots and info.manifest is not None
    ]
    if not found:
        raise UserError(
            f"{recording} holds no steps with raw activations; record the agent's own stream, "
            "not the encoder's features"
        )
    policies = sorted({manifest.policy_hash for manifest in found})
    if len(policies) > 1:
        raise UserError(
            f"{recording} holds the steps of {len(policies)} policies ({', '.join(policies)}); a "
            "transcoder belongs to one, so record them apart"
        )
    return found[0]


def _batches(recording: Path) -> Iterator[tuple[str, StepBatch]]:
    for message in _steps(recording):
        yield message.boot_id, message.batch


def _steps(recording: Path) -> Iterator[StepsMessage]:
    for recorded in read_recording(recording):
        if isinstance(recorded.message, StepsMessage):
            yield recorded.message

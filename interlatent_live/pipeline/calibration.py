"""Calibration recordings: evidence that claims are proposed from before a run begins."""

from __future__ import annotations

from typing import TYPE_CHECKING

from interlatent_live.errors import UserError
from interlatent_live.explanations.evidence import EvidenceStore
from interlatent_live.pipeline.explainer import Calibration
from interlatent_live.recordings import read_recording
from interlatent_live.wire.messages import FeaturesMessage, Hello

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from interlatent_live.stream import Manifest


def load_calibrations(files: Sequence[Path]) -> list[Calibration]:
    """Evidence of every hook point in the recordings.

    Raises:
        UserError: when a file is missing or holds no features.
        CorruptFileError: when a file is not a recording of ours.
    """
    return [one for file in files for one in load_calibration(file)]


def load_calibration(file: Path) -> list[Calibration]:
    """Evidence of every hook point in one recording of features; see :func:`load_calibrations`."""
    manifest: Manifest | None = None
    store: EvidenceStore | None = None
    for recorded in read_recording(file):
        match recorded.message:
            case Hello(manifest=said):
                if manifest is not None and manifest.metrics != said.metrics:
                    raise UserError(
                        f"{file} holds runs with different metrics; record one kind of agent a file"
                    )
                manifest = said
                store = store or EvidenceStore(said.metrics)
            case FeaturesMessage(batch=batch) if store is not None:
                store.add(batch)
    if manifest is None or store is None or not len(store):
        raise UserError(
            f"{file} holds no features of an encoder; name a recording that has some in "
            "explainer.calibration"
        )
    return [Calibration(manifest, store.evidence(hook)) for hook in store.hook_points()]

"""``encode_at="agent"``: features are computed beside the policy, and only they travel.

For thin links: at F = 4 d and k = 8 a step's features are a few dozen bytes where its activations
were kilobytes. The work is done in the sender thread, never in the policy's.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from interlatent_live.encoding.cpu import CpuBackend
from interlatent_live.errors import MismatchError
from interlatent_live.stream import FeatureBatch, SparseCodes, StepFlag
from interlatent_live.transcoders.encoding import encode_activations, weights_of
from interlatent_live.transcoders.native import check_binding, load_transcoder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from interlatent_live.encoding.backend import Encoder
    from interlatent_live.stream import Manifest, StepBatch
    from interlatent_live.transcoders.native import LoadedTranscoder
    from interlatent_live.transcoders.transcoder import Transcoder


class AgentEncoder:
    """Encodes one agent's step batches.

    Args:
        transcoders: by hook point: a folder in the native format, or one that was loaded.
        manifest: the agent's; the transcoders must have been trained on its policy. A width of 0 is
            not known yet.

    Raises:
        MismatchError: when one was trained on another policy, hook point or width.
        UserError: when a folder cannot be read.
    """

    def __init__(
        self, transcoders: Mapping[str, LoadedTranscoder | Path | str], manifest: Manifest
    ) -> None:
        widths = {hook.name: (hook.d_in, hook.d_out) for hook in manifest.hook_points}
        self._transcoders: dict[str, tuple[Transcoder, Encoder]] = {}
        device = CpuBackend()
        for name, given in transcoders.items():
            loaded = load_transcoder(Path(given)) if isinstance(given, (str, Path)) else given
            identity = loaded.transcoder.identity
            check_binding(
                loaded.provenance, identity, policy_hash=manifest.policy_hash, hook_point=name
            )
            config = loaded.transcoder.config
            if name not in widths:
                raise MismatchError(
                    f"a transcoder was given for {name!r}, which is not among the hook points "
                    f"{', '.join(map(repr, widths))}"
                )
            if not all(
                own in {0, theirs}
                for own, theirs in zip(widths[name], (config.d_in, config.d_out), strict=True)
            ):
                raise MismatchError(
                    f"transcoder {identity} maps {config.d_in} to {config.d_out} numbers, but hook "
                    f"point {name!r} has the widths {widths[name]}; use the transcoder of this "
                    "hook point"
                )
            encoder = device.prepare(weights_of(loaded.transcoder))
            self._transcoders[name] = loaded.transcoder, encoder
        self._run_id, self._boot_id = manifest.run_id, manifest.boot_id
        self.identities = {name: one.identity for name, (one, _) in self._transcoders.items()}
        """Transcoder hash by hook point."""

    def encode(self, batch: StepBatch) -> FeatureBatch:
        """Sparse features of a step batch; rows without activations have none."""
        silent = (batch.steps.flags & np.uint8(StepFlag.NO_ACTIVATION)) != 0
        codes = {}
        for name, seen in batch.activations.items():
            known = self._transcoders.get(name)
            if known is not None:
                transcoder, encoder = known
                code = encode_activations(transcoder, seen, encoder)
                codes[name] = _without(code, silent) if silent.any() else code
        return FeatureBatch(
            run_id=self._run_id,
            boot_id=self._boot_id,
            steps=batch.steps,
            codes=codes,
            transcoders={name: self.identities[name] for name in codes},
            encoded_ns=time.time_ns(),
        )


def _without(codes: SparseCodes, silent: NDArray[np.bool_]) -> SparseCodes:
    """The codes with some rows emptied."""
    counts = np.diff(codes.indptr).astype(np.intp)
    keep = np.repeat(~silent, counts)
    indptr = np.zeros_like(codes.indptr)
    indptr[1:] = np.cumsum(np.where(silent, 0, counts))
    error, error_affine = codes.error.copy(), codes.error_affine.copy()
    error[silent] = error_affine[silent] = np.nan
    return SparseCodes(
        codes.n_features, indptr, codes.index[keep], codes.value[keep], error, error_affine
    )

"""What a foreign file says once read, and how it is bound to a policy.

A foreign file carries no policy hash, and a transcoder used on a policy that it was not trained on
explains nothing. So binding measures it on that policy's own activations first.
"""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor

from interlatent_live.bench.report import version_facts
from interlatent_live.errors import CorruptFileError, MismatchError, UserError
from interlatent_live.transcoders.config import Architecture, Target, TranscoderConfig
from interlatent_live.transcoders.dataset import split_by_episode
from interlatent_live.transcoders.evaluation.reconstruction import reconstruction_summary
from interlatent_live.transcoders.native import LoadedTranscoder, Provenance, save_transcoder
from interlatent_live.transcoders.tensorfiles import read_checked_tensors, read_safetensors_header
from interlatent_live.transcoders.training.job import fit_baselines
from interlatent_live.transcoders.transcoder import Transcoder

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from interlatent_live.transcoders.dataset import ActivationDataset

_FLOATS: Final = ("F32", "F16", "BF16", "F64")
_MAX_JSON_BYTES: Final = 1 << 20


@dataclass(frozen=True, eq=False)
class ForeignWeights:
    """Tensors by our names, in our layout and semantics, float32; not yet bound to a policy."""

    source: str
    """Format they came from."""
    architecture: Architecture
    target: Target
    tensors: Mapping[str, Tensor]
    k: int | None = None
    """Where the format states it."""

    @property
    def skip(self) -> bool:
        """Whether there is a skip path."""
        return "W_skip" in self.tensors

    def transcoder(self, *, k: int | None = None) -> Transcoder:
        """The transcoder, with ``k`` where the file does not state it.

        Raises:
            UserError: when k is needed and unknown.
            CorruptFileError: when the tensors are not usable.
        """
        d_in, n_features = self.tensors["W_enc"].shape
        takes_k = self.architecture is not Architecture.RELU
        try:
            config = TranscoderConfig(
                architecture=self.architecture,
                d_in=d_in,
                d_out=self.tensors["W_dec"].shape[1],
                n_features=n_features,
                k=(self.k or k) if takes_k else None,
                l1=None if takes_k else 0.0,  # what it was trained with is not in the file
                skip=self.skip,
                target=self.target,
            )
            return Transcoder.from_tensors(config, self.tensors)
        except UserError as error:
            raise CorruptFileError(f"the {self.source} file is not usable: {error}") from error


def bind(
    weights: ForeignWeights,
    dataset: ActivationDataset,
    hook_point: str,
    out: Path,
    *,
    max_fvu: float = 0.5,
    command: str = "",
) -> LoadedTranscoder:
    """Measure foreign weights on a policy's activations and save them bound to that policy.

    Args:
        weights: as read.
        dataset: collected from the policy that the transcoder is to be used on.
        hook_point: of the dataset.
        out: directory to save to.
        max_fvu: refuse to bind above this.
        command: for the provenance.

    Raises:
        MismatchError: when the widths are not the hook point's, or the transcoder explains too
            little of this policy to have been trained on it.
    """
    rows = dataset.load(hook_point)
    y_all = rows.x if weights.target is Target.INPUT else rows.y
    d_in, d_out = weights.tensors["W_enc"].shape[0], weights.tensors["W_dec"].shape[1]
    if (d_in, d_out) != (rows.x.shape[1], y_all.shape[1]):
        raise MismatchError(
            f"the {weights.source} file maps {d_in} to {d_out}, but hook point {hook_point!r} has "
            f"{rows.x.shape[1]} to {y_all.shape[1]}; name the hook point that it was trained at"
        )
    split = split_by_episode(rows.episode)
    x_train, y_train = (torch.from_numpy(v[split.train]) for v in (rows.x, y_all))
    x_test, y_test = (torch.from_numpy(v[split.test]) for v in (rows.x, y_all))
    transcoder = weights.transcoder(k=1)
    if weights.k is None and weights.architecture is not Architecture.RELU:
        l0 = float((transcoder.encode(x_train) > 0).sum(1).float().mean())
        k = int(np.clip(round(l0), 1, transcoder.config.n_features))
        transcoder = weights.transcoder(k=k)
    transcoder = transcoder.with_baselines(fit_baselines(x_train, y_train))
    summary = reconstruction_summary(transcoder, x_test, y_test)
    if not summary["fvu"] <= max_fvu:
        raise MismatchError(
            f"the {weights.source} file leaves {summary['fvu']:.2f} of the variance of policy "
            f"{dataset.header.policy_hash} unexplained at {hook_point!r} (limit {max_fvu:g}); it "
            "was trained on another policy or hook point, or raise --max-fvu"
        )
    provenance = Provenance(
        policy_hash=dataset.header.policy_hash,
        hook_point=hook_point,
        dataset_hash=dataset.hash,
        command=command,
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        versions=version_facts(),
        evaluation=summary,
        environment=dataset.header.environment,
        source=weights.source,
    )
    return LoadedTranscoder(transcoder, provenance, save_transcoder(out, transcoder, provenance))


def read_json(path: Path) -> dict[str, Any]:
    """A small JSON object from a stranger.

    Raises:
        UserError: when there is no such file.
        CorruptFileError: when it is no JSON object or larger than 1 MiB.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; name the folder that the other tool saved")
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise CorruptFileError(f"{path} is larger than 1 MiB; not read")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CorruptFileError(f"{path} holds no JSON object")
    return value


def positive_int(config: Mapping[str, Any], key: str, path: Path) -> int:
    """An integer ≥ 1 from a foreign configuration.

    Raises:
        CorruptFileError: when it is missing or something else.
    """
    value = config.get(key)
    if type(value) is not int or value < 1:
        raise CorruptFileError(f"{path} states {key} = {value!r}; a whole number was expected")
    return value


def read_floats(
    path: Path, shapes: Mapping[str, tuple[int, ...]], *, optional: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """Float tensors of the given shapes, as float32; any float dtype is accepted.

    Raises:
        CorruptFileError: when names, shapes or dtypes differ.
    """
    header = read_safetensors_header(path)
    wanted = {
        name: shape for name, shape in shapes.items() if name in header or name not in optional
    }
    expected = {
        name: (dtype if (dtype := header.get(name, ("F32", ()))[0]) in _FLOATS else "F32", shape)
        for name, shape in wanted.items()
    }
    tensors = read_checked_tensors(path, expected)
    return {name: tensor.to(torch.float32) for name, tensor in tensors.items()}

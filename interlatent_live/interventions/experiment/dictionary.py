"""The dictionaries that an agent under experiment is given, so that controls are interventions too.

After the transcoder's own features come ones that are never on and whose decoders are the controls'
unit directions; at the head, one for each output. Steering by them goes the very way, with the very
bounds and conditions, that steering by a feature goes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np
import torch

from interlatent_live.transcoders.config import Architecture, TranscoderConfig
from interlatent_live.transcoders.native import LoadedTranscoder
from interlatent_live.transcoders.transcoder import Transcoder

if TYPE_CHECKING:
    from numpy.typing import NDArray

NEVER_ON: Final = -1.0
"""Encoder bias of a feature that no input turns on."""


@dataclass(frozen=True, slots=True)
class Augmented:
    """A dictionary with controls, and where they are."""

    loaded: LoadedTranscoder
    isotropic: range
    covariance: range


def augmented(
    loaded: LoadedTranscoder, y: NDArray[np.float32], per_kind: int, seed: int
) -> Augmented:
    """The transcoder's features, then unit directions: isotropic, and from the covariance of y.

    Args:
        loaded: the transcoder.
        y: [n, d_out] outputs of the hook point.
        per_kind: directions of each kind.
        seed: of their draw.
    """
    transcoder = loaded.transcoder
    d_out = transcoder.config.d_out
    random = np.random.default_rng(seed)
    isotropic = random.normal(size=(per_kind, d_out))
    covariance = random.multivariate_normal(
        np.zeros(d_out), np.cov(y.T.astype(np.float64)), per_kind, method="svd"
    )
    directions = np.concatenate([isotropic, covariance])
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    tensors = _with_directions(transcoder, torch.from_numpy(directions))
    n_features = transcoder.config.n_features
    config = msgspec.structs.replace(
        transcoder.config,
        n_features=n_features + len(directions),
        # What is nested in what does not matter where nothing is trained.
        widths=None
        if transcoder.config.widths is None
        else (*transcoder.config.widths, n_features + len(directions)),
    )
    made = Transcoder.from_tensors(config, tensors)
    return Augmented(
        LoadedTranscoder(made, loaded.provenance, loaded.path),
        range(n_features, n_features + per_kind),
        range(n_features + per_kind, n_features + 2 * per_kind),
    )


def biases(loaded: LoadedTranscoder, hook_point: str, d_in: int, d_out: int) -> LoadedTranscoder:
    """One feature for each output of ``hook_point``: steering by it is a constant bias."""
    config = TranscoderConfig(
        architecture=Architecture.RELU, d_in=d_in, d_out=d_out, n_features=d_out, l1=0.0
    )
    made = Transcoder(
        config=config,
        W_enc=torch.zeros(d_in, d_out),
        b_enc=torch.full((d_out,), NEVER_ON),
        W_dec=torch.eye(d_out),
        b_dec=torch.zeros(d_out),
    )
    provenance = msgspec.structs.replace(loaded.provenance, hook_point=hook_point)
    return LoadedTranscoder(made, provenance, loaded.path)


def _with_directions(transcoder: Transcoder, directions: torch.Tensor) -> dict[str, torch.Tensor]:
    tensors = dict(transcoder.tensors())
    n, d_in = len(directions), transcoder.config.d_in
    like = tensors["W_dec"]
    tensors["W_enc"] = torch.cat([tensors["W_enc"], like.new_zeros((d_in, n))], dim=1)
    tensors["b_enc"] = torch.cat([tensors["b_enc"], like.new_full((n,), NEVER_ON)])
    tensors["W_dec"] = torch.cat([like, directions.to(like)])
    if "threshold" in tensors:
        last = tensors["threshold"][-1]
        tensors["threshold"] = torch.cat([tensors["threshold"], last.expand(n)])
    return tensors

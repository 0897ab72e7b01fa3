"""A probe as a file and as a feature.

On disk it is a folder with ``probe.safetensors`` and ``probe.json``: the weights, what it tells,
which policy and hook point it belongs to, and how it scored beside its controls. Live it is served
as a feature is: :func:`append_probes` adds it to a transcoder as one more latent whose decoder row
is zero, so that encoder, statistics, claims and console treat it like any other and reconstruction
is unchanged.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from interlatent_live.errors import CorruptFileError, MismatchError, UserError
from interlatent_live.probes.linear import Logistic
from interlatent_live.probes.targets import Target, parse_target
from interlatent_live.transcoders.config import Architecture
from interlatent_live.transcoders.transcoder import Transcoder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

WEIGHTS: Final = "probe.safetensors"
DESCRIPTION: Final = "probe.json"
SCHEMA: Final = 1


class Side(StrEnum):
    """Which tensor of the hook point the probe reads."""

    INPUT = "x"
    OUTPUT = "y"


@dataclass(frozen=True, slots=True, eq=False)
class LinearProbe:
    """A calibrated linear probe on one side of a hook point."""

    target: Target
    hook_point: str
    side: Side
    policy_hash: str
    logistic: Logistic
    threshold: float
    """Probability above which it says yes; chosen on the validation episodes."""

    def probability(self, activations: NDArray[np.floating]) -> NDArray[np.float64]:
        """P(target) [n] for the hook point's x or y [n, d].

        Raises:
            MismatchError: when the activations are of another width.
        """
        if activations.shape[1] != len(self.logistic.weight):
            raise MismatchError(
                f"the probe for {str(self.target)!r} reads {len(self.logistic.weight)} values of "
                f"{self.hook_point}'s {self.side}, not {activations.shape[1]}"
            )
        return self.logistic.probability(activations)


def save_probe(folder: Path, probe: LinearProbe, report: dict[str, Any]) -> None:
    """Write a probe's folder; ``report`` is what it scored, as plain values."""
    from safetensors.numpy import save_file  # noqa: PLC0415 - only saving needs it

    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {
            "weight": probe.logistic.weight.astype(np.float64),
            "bias": np.array([probe.logistic.bias], np.float64),
        },
        folder / WEIGHTS,
    )
    description = {
        "schema": SCHEMA,
        "target": str(probe.target),
        "hook_point": probe.hook_point,
        "side": probe.side.value,
        "policy_hash": probe.policy_hash,
        "threshold": probe.threshold,
        "report": report,
    }
    text = json.dumps(description, indent=1, ensure_ascii=False) + "\n"
    (folder / DESCRIPTION).write_text(text, encoding="utf-8")


def load_probe(folder: Path, *, policy_hash: str | None = None) -> LinearProbe:
    """Read a probe's folder; with ``policy_hash``, only for that policy.

    Raises:
        CorruptFileError: when a file is missing or damaged.
        MismatchError: when the probe belongs to another policy.
    """
    from safetensors import SafetensorError  # noqa: PLC0415 - only loading needs it
    from safetensors.numpy import load_file  # noqa: PLC0415 - likewise

    try:
        data = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS)
        if data["schema"] != SCHEMA:
            raise ValueError(f"schema {data['schema']} is not {SCHEMA}")  # noqa: TRY301 - one place words it
        weight, bias = tensors["weight"], tensors["bias"]
        if weight.ndim != 1 or bias.shape != (1,) or weight.dtype != np.float64:
            raise ValueError("tensors of the wrong shape or type")  # noqa: TRY301 - likewise
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise ValueError("weights that are not finite")  # noqa: TRY301 - likewise
        probe = LinearProbe(
            target=parse_target(data["target"]),
            hook_point=str(data["hook_point"]),
            side=Side(data["side"]),
            policy_hash=str(data["policy_hash"]),
            logistic=Logistic(weight, float(bias[0])),
            threshold=float(data["threshold"]),
        )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, UserError) as error:
        raise CorruptFileError(f"{folder} holds no intact probe: {error}") from error
    if policy_hash is not None and probe.policy_hash != policy_hash:
        raise MismatchError(
            f"the probe in {folder} was trained on policy {probe.policy_hash}, not on {policy_hash}"
        )
    return probe


def append_probes(transcoder: Transcoder, probes: Sequence[LinearProbe]) -> Transcoder:
    """The transcoder with one more feature per probe, F, F + 1, …, that decodes to nothing.

    The feature is on where the probe says yes, and its activation is the log odds above that
    threshold (so that it is > 0, as a feature must be).

    Raises:
        UserError: when a probe reads another width or side, or the architecture cannot take it.
    """
    config = transcoder.config
    if config.architecture in (Architecture.TOPK, Architecture.MATRYOSHKA):
        raise UserError(
            f"a {config.architecture} transcoder cannot take a probe: its features compete or are "
            "nested; use batchtopk, jumprelu or relu"
        )
    columns, biases = [], []
    for probe in probes:
        if probe.side is not Side.INPUT or len(probe.logistic.weight) != config.d_in:
            raise UserError(
                f"the probe for {str(probe.target)!r} reads {len(probe.logistic.weight)} values of "
                f"{probe.hook_point}'s {probe.side}; a transcoder encodes its input of "
                f"{config.d_in}: train the probe with side x"
            )
        odds = np.log(probe.threshold) - np.log1p(-probe.threshold)
        columns.append(torch.from_numpy(probe.logistic.weight))
        biases.append(probe.logistic.bias - odds)
    count = len(probes)
    if not count:
        return transcoder
    tensors = dict(transcoder.tensors())
    extra = torch.stack(columns, dim=1).to(tensors["W_enc"])
    tensors["W_enc"] = torch.cat([tensors["W_enc"], extra], dim=1)
    tensors["b_enc"] = torch.cat([tensors["b_enc"], torch.tensor(biases).to(tensors["b_enc"])])
    silent = tensors["W_dec"].new_zeros((count, config.d_out))
    tensors["W_dec"] = torch.cat([tensors["W_dec"], silent])
    if "threshold" in tensors:
        zeros = tensors["threshold"].new_zeros(count)
        tensors["threshold"] = torch.cat([tensors["threshold"], zeros])
    fields = {name: getattr(config, name) for name in config.__struct_fields__}
    fields["n_features"] = config.n_features + count
    return Transcoder.from_tensors(type(config)(**fields), tensors, transcoder.baselines)


def plain(report: Any) -> dict[str, Any]:
    """A frozen report as plain values for JSON."""
    return asdict(report)

"""An agent under control as a process of its own, that writes down what it does at every step.

Run as ``python -m interlatent_live.bench.interventions.agent_process ENDPOINT FOLDER PERIOD_MS
[ENCODER]``; the key comes on standard input. Each step appends a record to ``witness`` in the
folder: when the forward began, when the gate was asked and when it had answered (CLOCK_MONOTONIC,
which all processes of a machine share), and whether the action was the safe one, a steered one, or
the policy's own to the bit. A process can be frozen between any two of these moments; what it must
not do is decide so after it should have known.
"""

from __future__ import annotations

import os
import struct
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import torch
from torch import nn

from interlatent_live.agent.attach import attach
from interlatent_live.agent.control import ControlOptions
from interlatent_live.policies.hashing import policy_hash
from interlatent_live.transcoders.config import Architecture, TranscoderConfig
from interlatent_live.transcoders.native import LoadedTranscoder, Provenance
from interlatent_live.transcoders.transcoder import Transcoder

if TYPE_CHECKING:
    from collections.abc import Iterator

AGENT: Final = "bench"
HOOK: Final = "0"
FEATURES: Final = 64
LEASE_S: Final = 1.0
SAFE: Final = 1
STEERED: Final = 2
_RECORD: Final = struct.Struct("<qqqB")


class Witnessed(NamedTuple):
    """One step."""

    forward_ns: int
    """When the forward began, on CLOCK_MONOTONIC."""
    gate_ns: int
    """When the gate was asked."""
    at_ns: int
    """When it had answered."""
    what: int
    """SAFE, STEERED or 0 for the policy's own."""


def read_witness(path: Path) -> Iterator[Witnessed]:
    """Every whole record so far."""
    data = path.read_bytes() if path.exists() else b""
    whole = len(data) // _RECORD.size * _RECORD.size
    return (Witnessed(*one) for one in _RECORD.iter_unpack(data[:whole]))


def policy() -> nn.Sequential:
    """The same small policy in every process."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 4))


def transcoder() -> Transcoder:
    """The same dictionary of its first layer in every process."""
    random = torch.Generator().manual_seed(1)
    return Transcoder(
        config=TranscoderConfig(
            architecture=Architecture.RELU, d_in=8, d_out=64, n_features=FEATURES, l1=0.0
        ),
        W_enc=torch.randn(8, FEATURES, generator=random),
        b_enc=torch.zeros(FEATURES),
        W_dec=torch.randn(FEATURES, 64, generator=random),
        b_dec=torch.zeros(64),
    )


def provenance() -> Provenance:
    """What binds the dictionary to the policy."""
    return Provenance(policy_hash=policy_hash(policy()), hook_point=HOOK)


def main(endpoint: str, folder: Path, period_s: float, stream: str | None) -> None:
    """Act until killed."""
    torch.set_num_threads(1)
    acting, twin = policy(), policy()
    options = ControlOptions(
        endpoint=endpoint,
        safe_action=torch.zeros(1, 4),
        transcoders={HOOK: LoadedTranscoder(transcoder(), provenance(), folder)},
        max_norm={HOOK: 10.0},
        state=folder,
        key=bytes.fromhex(sys.stdin.readline().strip()),
        lease_s=LEASE_S,
        max_ttl_s=30.0,
    )
    random = torch.Generator().manual_seed(2)
    with attach(acting, [HOOK], ["first"], endpoint=stream, agent=AGENT, control=options) as tap:
        control = tap.control
        if control is None:
            raise RuntimeError("control was asked for")
        witness = os.open(folder / "witness", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        due = time.monotonic()
        while True:
            obs = torch.randn(1, 8, generator=random)
            with torch.no_grad():
                own = twin(obs)
                forward_ns = time.monotonic_ns()
                meant = acting(obs)
            gate_ns = time.monotonic_ns()
            taken = control.gate(meant)
            at_ns = time.monotonic_ns()
            steered = STEERED if taken is meant and not torch.equal(meant, own) else 0
            what = SAFE if taken is not meant else steered
            os.write(witness, _RECORD.pack(forward_ns, gate_ns, at_ns, what))
            tap.step([float(obs[0, 0])])
            due = max(due + period_s, time.monotonic() - period_s)
            time.sleep(max(0.0, due - time.monotonic()))


if __name__ == "__main__":
    _, control_at, where, period_ms, *encoder = sys.argv
    main(control_at, Path(where), float(period_ms) / 1000, encoder[0] if encoder else None)

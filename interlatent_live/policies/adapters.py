"""Observation adapters: an environment's observation as the vector a policy was trained on."""

from __future__ import annotations

import torch

from interlatent_live.policies.spec import Adapter

RAM_BYTES = 128
"""Of the Atari 2600."""
HUMANOID_V5_OBS = 348
HUMANOID_V2_OBS = 376
_CFRC_EXT_FROM = 292
_SEEN = {
    Adapter.FRAMES_WITHOUT_RAM: slice(-RAM_BYTES),
    Adapter.UNITREE_G1: slice(103),
}
"""The part of an observation that the network is given, where the rest is for metrics only."""


def adapt(adapter: Adapter, obs: torch.Tensor) -> torch.Tensor:
    """Turn observations [n, …] into network inputs [n, d].

    Raises:
        ValueError: when the observation's shape is not the adapter's.
    """
    if adapter is Adapter.NONE:
        return obs
    if adapter is Adapter.FLATTEN:
        return obs.reshape(len(obs), -1)
    if adapter is Adapter.MSPACMAN_BYTES_BITS:
        return _bytes_bits(obs)
    if adapter in _SEEN:
        return obs[:, _SEEN[adapter]]
    if adapter is Adapter.APPEND_ONE:
        return torch.cat([obs, obs.new_ones((len(obs), 1))], dim=1)
    return _humanoid_376(obs, cfrc_zero=adapter is Adapter.HUMANOID_V5_TO_376_CFRC_ZERO)


def _bytes_bits(obs: torch.Tensor) -> torch.Tensor:
    """uint8 [n, b] → float32 [n, 9 b]: bytes over 255, then each byte's bits, highest first."""
    if obs.dtype != torch.uint8:
        raise ValueError(f"RAM is bytes (uint8), not {obs.dtype}")
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=obs.device)
    bits = (obs[:, :, None] >> shifts) & 1
    return torch.cat([obs / 255, bits.reshape(len(obs), -1)], dim=1).to(torch.float32)


def _humanoid_376(obs: torch.Tensor, *, cfrc_zero: bool) -> torch.Tensor:
    """[n, 348] → [n, 376]: v5 leaves out the world body and the root's actuator forces."""
    if obs.shape[-1] != HUMANOID_V5_OBS:
        raise ValueError(f"Humanoid-v5 has {HUMANOID_V5_OBS} observations, not {obs.shape[-1]}")
    out = obs.new_zeros((len(obs), HUMANOID_V2_OBS))
    out[:, :45] = obs[:, :45]  # joint positions and velocities
    out[:, 55:185] = obs[:, 45:175]  # cinert, after the world body's ten zeros
    out[:, 191:269] = obs[:, 175:253]  # cvel, after six zeros
    out[:, 275:292] = obs[:, 253:270]  # actuator forces, after the root's six zeros
    if not cfrc_zero:
        out[:, 298:376] = obs[:, 270:348]  # contact forces, after six zeros
    return out

"""A policy's identity is its weights: the hash a transcoder is bound to.

A transcoder trained on one policy says nothing about another, so both carry this hash and a
mismatch is refused. The hash covers names, dtypes, shapes and bytes of the state dict and nothing
else: not the device, not the file it came from, not the order in which modules were registered.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX: Final = "sha256:"


def policy_hash(module: torch.nn.Module) -> str:
    """Content hash of a module's state dict, ``"sha256:"`` and 64 hex digits.

    Entries are sorted by name; each contributes its name, dtype, shape and little-endian bytes,
    each field preceded by its length, so that no two different state dicts feed the same bytes.

    Raises:
        TypeError: when the state dict holds something that is not a tensor (an extra state).
    """
    return state_hash(module.state_dict())


def state_hash(state: Mapping[str, object]) -> str:
    """The same over a state dict as it lies in a file.

    Raises:
        TypeError: when an entry is not a tensor.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name]
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"the state dict's entry {name!r} is no tensor and cannot be hashed")
        flat = tensor.detach().to("cpu").contiguous().reshape(-1)
        shape = ",".join(str(size) for size in tensor.shape)
        for part in (name.encode(), str(tensor.dtype).encode(), shape.encode()):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
        # A view as bytes covers every dtype, bfloat16 included, which NumPy does not know.
        content = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return PREFIX + digest.hexdigest()

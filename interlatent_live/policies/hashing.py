"""A policy's identity is what decides its outputs: the hash a transcoder is bound to.

A transcoder trained on one policy says nothing about another, so both carry this hash and a
mismatch is refused. It covers names, dtypes, shapes and bytes of the state dict, and which modules
do the computing: two networks of equal weights, one with ReLU and one with tanh, are two policies.
It does not cover the device, the file it came from, or what a module's own code does: a function
called in ``forward`` leaves no trace that could be hashed.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX: Final = "sha256:"

_WITHOUT_EFFECT: Final = frozenset({"inplace", "training"})
"""Settings of modules that never change an output of a policy that acts."""


def policy_hash(module: torch.nn.Module) -> str:
    """Content hash of a module, ``"sha256:"`` and 64 hex digits.

    It is over :func:`state_hash` and :func:`structure`, and takes about as long as reading the
    weights does.

    Raises:
        TypeError: when the state dict holds something that is not a tensor (an extra state).
    """
    return combined_hash(state_hash(module.state_dict()), structure(module))


def combined_hash(state: str, modules: list[list[object]]) -> str:
    """The hash of a policy whose weights hash to ``state`` and whose modules are ``modules``."""
    text = json.dumps([state, modules], ensure_ascii=False, separators=(",", ":"))
    return PREFIX + hashlib.sha256(text.encode()).hexdigest()


def structure(module: torch.nn.Module) -> list[list[object]]:
    """The modules that compute, in order: name, class, and the settings of each that are scalar.

    Only modules without children count: containers are named and nested by taste, and a network
    rebuilt from a TorchScript file has others than the original.
    """
    return [
        [name, type(leaf).__name__, _settings(leaf)]
        for name, leaf in module.named_modules(remove_duplicate=False)
        if next(leaf.children(), None) is None
    ]


def state_hash(state: Mapping[str, object]) -> str:
    """Content hash of a state dict, as it lies in a file or in a module.

    Entries are sorted by name; each contributes its name, dtype, shape and little-endian bytes,
    each field preceded by its length, so that no two different state dicts feed the same bytes.

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


def _settings(leaf: torch.nn.Module) -> dict[str, str]:
    """Scalar settings of a module, and tuples of scalars such as strides, by name.

    PyTorch's own modules say which of their attributes are constants, so that a later release with
    one more attribute does not rename every policy; of other modules every public one counts.
    """
    found = vars(leaf)
    names: set[str] = set(found)
    if type(leaf).__module__.startswith("torch.nn."):
        names &= set(getattr(leaf, "__constants__", ()))
    told = {name: _told(found[name]) for name in sorted(names - _WITHOUT_EFFECT)}
    return {
        name: value
        for name, value in told.items()
        if value is not None and not name.startswith("_")
    }


def _told(value: object) -> str | None:
    """A scalar or a tuple of scalars in words, 1 and 1.0 alike; None for anything else."""
    if isinstance(value, tuple):
        parts = [_told(part) for part in value]
        return None if None in parts else f"({', '.join(map(str, parts))})"
    if isinstance(value, bool | str):
        return repr(value)
    return repr(float(value)) if isinstance(value, int | float) else None

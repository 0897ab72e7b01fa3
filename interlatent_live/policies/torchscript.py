"""A TorchScript policy as ordinary modules, because PyTorch refuses hooks on scripted ones.

A script holds weights, module names and code, but no Python classes, so a network can be rebuilt
only when it is known how its modules follow each other. Plain feed-forward networks are tried: the
modules one after another, and, where linear maps follow each other directly, with each common
activation between them (written as a function, it is no module and leaves no name in the file).
What is accepted must give the same bits as the script on inputs of several sizes. That is strong
evidence and no proof: a branch that none of those inputs takes would not be seen.

Nothing is unpickled, but loading and calling a script runs the code inside it in PyTorch's
interpreter, so a file deserves the trust that a program does.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from interlatent_live.errors import CorruptFileError, UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

SUFFIXES: Final = (".pt", ".ts", ".torchscript")

_REMEDY: Final = (
    "write the network as a torch.nn.Module, load the weights into it and give `module:function` "
    "that returns it, or publish its activations with tap.publish(...)"
)
_STATELESS: Final[dict[str, type[nn.Module]]] = {
    cls.__name__: cls
    for cls in (
        nn.ReLU, nn.Tanh, nn.ELU, nn.SiLU, nn.GELU, nn.Sigmoid, nn.LeakyReLU, nn.Softplus, nn.Mish,
        nn.Identity, nn.Dropout, nn.Flatten,
    )
}  # fmt: skip
_BETWEEN: Final = (nn.Tanh, nn.ReLU, nn.ELU, nn.SiLU, nn.GELU, nn.LeakyReLU, nn.Sigmoid)
_SCALES: Final = (0.01, 1.0, 100.0)
_ROWS: Final = 64


def rebuild_torchscript(path: Path) -> nn.Module:
    """The network in a TorchScript file as ordinary modules, in evaluation mode.

    Modules keep their names and classes, so the policy's hash is that of the module that was
    scripted, unless that one calls activations as functions. Such an activation is called as the
    linear map before it, with ``_activation`` behind, and counts in the hash:
    ``l1..l1_activation`` is then the hook point of that layer.

    Returns:
        A module from observations [n, d_in] to outputs [n, d_out], float32.

    Raises:
        UserError: when there is no such file, or it holds no feed-forward network of known modules
            that gives the script's own outputs, bit for bit.
        CorruptFileError: when the file is no intact script.
    """
    script = load_script(path)
    for candidate in _candidates(path, script):
        if _same(candidate, script):
            return candidate
    raise UserError(
        f"{path} cannot be rebuilt: its modules one after another, with the usual activations "
        f"between them, do not give the script's own outputs; {_REMEDY}"
    )


def load_script(path: Path) -> Any:
    """The script in a file, in evaluation mode on the CPU.

    Raises:
        UserError: when there is no such file.
        CorruptFileError: when the file is no intact script.
    """
    if not path.is_file():
        raise UserError(f"there is no TorchScript file {path}")
    try:
        with warnings.catch_warnings():
            # PyTorch deprecates TorchScript; people still have the files.
            warnings.simplefilter("ignore", DeprecationWarning)
            script: Any = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]  # PyTorch left it untyped
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip().split("\n", maxsplit=1)[0]
        raise CorruptFileError(f"{path} is no intact TorchScript file: {reason}") from error
    script.eval()
    return script


def _candidates(path: Path, script: Any) -> Iterator[nn.Module]:
    """Networks that the script may be, the likeliest first."""
    yield _assembled(path, script, {})
    leaves = [name for name, module in script.named_modules() if not list(module.children())]
    kinds = dict(script.named_modules())
    linear = [name for name in leaves if kinds[name].original_name == "Linear"]
    bare = [
        first
        for first, second in pairwise(leaves)
        if kinds[first].original_name == kinds[second].original_name == "Linear"
    ]
    last = leaves[-1:] if leaves[-1:] == linear[-1:] else []
    for between in _BETWEEN if bare else (None,):
        inserted: dict[str, type[nn.Module]] = {}
        if between is not None:
            inserted.update(dict.fromkeys(bare, between))
        if inserted:
            yield _assembled(path, script, inserted)
        for name in last:
            for end in (nn.Tanh, nn.Sigmoid):
                yield _assembled(path, script, {**inserted, name: end})


def _assembled(
    path: Path, script: Any, inserted: Mapping[str, type[nn.Module]], prefix: str = ""
) -> nn.Module:
    """The script's modules in their order, with activations after the modules in ``inserted``."""
    if not list(script.children()):
        return _leaf(path, script, prefix)
    own = [name for name, _ in (*script.named_parameters(), *script.named_buffers())]
    loose = [name for name in own if "." not in name]
    if loose:
        raise UserError(
            f"{path} cannot be rebuilt: {_where(prefix)} is a {script.original_name} with tensors "
            f"of its own ({', '.join(loose)}), whose part in it only its code says; {_REMEDY}"
        )
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for name, child in script.named_children():
        inner = f"{prefix}.{name}" if prefix else name
        parts[name] = _assembled(path, child, inserted, inner)
        if inner in inserted:
            parts[f"{name}_activation"] = inserted[inner]()
    return nn.Sequential(parts).eval()


def _leaf(path: Path, script: Any, name: str) -> nn.Module:
    kind = str(script.original_name)
    tensors = dict(script.state_dict())
    weight = tensors.get("weight")
    made: nn.Module
    if kind == "Linear" and weight is not None and weight.ndim == 2:
        made = nn.Linear(weight.shape[1], weight.shape[0], bias="bias" in tensors)
    elif kind == "LayerNorm" and weight is not None:
        made = nn.LayerNorm(tuple(weight.shape), bias="bias" in tensors)
    elif kind in _STATELESS and not tensors:
        return _STATELESS[kind]().eval()
    else:
        raise UserError(
            f"{path} cannot be rebuilt: {_where(name)} is a {kind}, not one of Linear, LayerNorm, "
            f"{', '.join(_STATELESS)}; {_REMEDY}"
        )
    if any(tensor.dtype != torch.float32 for tensor in tensors.values()):
        raise UserError(
            f"{path} cannot be rebuilt: {_where(name)} is not float32; save it as float32, or "
            f"{_REMEDY}"
        )
    made.load_state_dict(tensors)
    return made.eval()


def _where(name: str) -> str:
    return f"its module {name!r}" if name else "the network itself"


@torch.no_grad()
def _same(candidate: nn.Module, script: Any) -> bool:
    """Whether both give the same bits on random inputs of several sizes."""
    first = next((m for m in candidate.modules() if isinstance(m, (nn.Linear, nn.LayerNorm))), None)
    if first is None:
        return False
    width = first.in_features if isinstance(first, nn.Linear) else first.normalized_shape[-1]
    generator = torch.Generator().manual_seed(0)
    for scale in _SCALES:
        x = torch.randn(_ROWS, width, generator=generator) * scale
        try:
            ours, theirs = candidate(x), script(x)
        except (RuntimeError, torch.jit.Error):
            return False  # the modules do not follow each other in this order
        if not (isinstance(theirs, torch.Tensor) and torch.equal(ours, theirs)):
            return False
    return True

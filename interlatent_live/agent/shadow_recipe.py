"""A policy told to another process: what its modules are, in JSON, and its tensors beside it.

A shadow in a process of its own needs the policy there, and nothing of ours may be pickled. So a
module is described as what it holds: numbers, words, containers, tensors, other modules, and
classes and functions *by name*. The other process imports these names itself, which is why a class
that lives in the started script (``__main__``) or inside a function cannot be told: importing the
script would run the agent a second time. Objects whose making is hidden in C, closures and bound
methods cannot be told either; each refusal says what stood where.
"""

from __future__ import annotations

import enum
import importlib
import json
import sys
import types
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Mapping

DEEPEST: Final = 64
_CONTAINERS: Final[dict[str, type]] = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "size": torch.Size,
}
_MAPS: Final[dict[str, type]] = {"dict": dict, "ordered": OrderedDict}
_KINDS: Final = {cls: kind for kind, cls in {**_CONTAINERS, **_MAPS}.items()}


class RecipeError(Exception):
    """The policy holds something that cannot be told; the message says what and where."""


@dataclass(frozen=True, slots=True, eq=False)
class Recipe:
    """A described value: plain JSON, and the tensors it speaks of."""

    document: Any
    tensors: Mapping[str, torch.Tensor]
    """Copies in host memory, by the numbers that ``document`` gives them."""

    def to_bytes(self) -> bytes:
        """The document's length in 8 little-endian bytes, the document, the tensors' safetensors.

        Raises:
            RecipeError: for a dtype that safetensors does not know.
        """
        text = json.dumps(self.document).encode()
        return len(text).to_bytes(8, "little") + text + tensor_bytes(self.tensors)


def tensor_bytes(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Tensors as safetensors.

    Raises:
        RecipeError: for a dtype that safetensors does not know.
    """
    try:
        return save_tensors(dict(tensors))
    except (KeyError, ValueError, RuntimeError) as error:
        raise RecipeError(f"its tensors cannot be told: {error}") from error


def read_recipe(data: bytes) -> Any:
    """Build what :meth:`Recipe.to_bytes` described.

    Raises:
        RecipeError: when a name cannot be imported here, or an object not made.
    """
    size = int.from_bytes(data[:8], "little")
    document = json.loads(data[8 : 8 + size])
    return _Builder(load_tensors(data[8 + size :])).value(document)


def describe(**parts: object) -> Recipe:
    """Describe named parts, such as a policy, that are made of what can be told.

    They are read back as one dict. Hooks are left behind, as they are when a policy is copied.

    Raises:
        RecipeError: naming what cannot be told, and where it stands.
    """
    teller = _Teller()
    items = [[name, teller.told(part, f"the {name}")] for name, part in parts.items()]
    return Recipe({"is": "dict", "id": -1, "items": items}, teller.tensors)


def name_of(value: object, where: str) -> dict[str, str]:
    """A class or function by the name another process can import it under.

    Raises:
        RecipeError: when it has none.
    """
    module = getattr(value, "__module__", None)
    name = getattr(value, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str):
        raise RecipeError(f"{where} is {value!r}, which has no name to import it by")
    if module == "__main__":
        raise RecipeError(
            f"{where} is {name}, which lives in the started script; put it into a module of its own"
        )
    # Functions of torch's are called after a class that cannot be imported.
    for one in (name, name.rpartition(".")[2]):
        try:
            found = _imported(module, one)
        except (ImportError, AttributeError):
            continue
        if found is value:
            return {"module": module, "name": one}
    raise RecipeError(f"{where} is {module}.{name}, which cannot be imported by that name")


class _Teller:
    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self._known: dict[int, int] = {}
        self._held: list[object] = []

    def told(self, value: Any, where: str, depth: int = 0) -> Any:
        if value is None or type(value) in (bool, int, float, str):
            return value
        if depth > DEEPEST:
            raise RecipeError(f"{where} is nested more than {DEEPEST} deep")
        if id(value) in self._known:
            return {"is": "known", "id": self._known[id(value)]}
        told = self._by_name(value, where)
        if told is not None:
            return told
        number = len(self._held)
        self._known[id(value)] = number
        self._held.append(value)  # or another could take its id
        return {**self._held_value(value, where, depth), "id": number}

    def _held_value(self, value: Any, where: str, depth: int) -> dict[str, Any]:
        if isinstance(value, (torch.Tensor, np.ndarray, np.generic)):
            return self._array(value, where)
        kind = _KINDS.get(type(value), "")
        if kind in _CONTAINERS:
            items = enumerate(value)
            told = [self.told(one, f"{where}[{i}]", depth + 1) for i, one in items]
            return {"is": kind, "items": told}
        if kind in _MAPS:
            return {"is": kind, "items": self._pairs(value, where, depth)}
        if isinstance(value, weakref.ReferenceType):
            return {"is": "weak", "to": self.told(value(), where, depth + 1)}
        return self._object(value, where, depth)

    @staticmethod
    def _by_name(value: Any, where: str) -> dict[str, Any] | None:
        if isinstance(value, enum.Enum):
            return {"is": "member", "of": name_of(type(value), where), "member": value.name}
        if isinstance(value, torch.dtype):
            return {"is": "dtype", "name": str(value).removeprefix("torch.")}
        if isinstance(value, np.dtype):
            return {"is": "numpy dtype", "name": value.str}
        if isinstance(value, torch.device):
            return {"is": "device", "name": "cpu"}
        if isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType, np.ufunc)):
            return {"is": "name", **name_of(value, where)}
        return None

    def _array(self, value: Any, where: str) -> dict[str, Any]:
        name = str(len(self.tensors))
        if isinstance(value, torch.Tensor):
            if value.layout is not torch.strided or value.is_quantized:
                raise RecipeError(f"{where} is a tensor of layout {value.layout}")
            self.tensors[name] = value.detach().to("cpu", copy=True).contiguous()
            kind = "parameter" if isinstance(value, nn.Parameter) else "tensor"
            return {"is": kind, "tensor": name}
        try:
            self.tensors[name] = torch.from_numpy(np.array(value, order="C"))
        except TypeError as error:
            raise RecipeError(f"{where} is an array of {value.dtype}: {error}") from error
        return {"is": "scalar" if isinstance(value, np.generic) else "array", "tensor": name}

    def _pairs(self, value: Mapping[Any, Any], where: str, depth: int) -> list[list[Any]]:
        return [
            [self.told(key, f"a key of {where}", depth + 1), self._entry(key, one, where, depth)]
            for key, one in value.items()
        ]

    def _entry(self, key: Any, one: Any, where: str, depth: int) -> Any:
        plain = isinstance(key, str) and key not in ("_modules", "_parameters", "_buffers")
        return self.told(one, f"{where}.{key}" if plain else where, depth + 1)

    def _object(self, value: Any, where: str, depth: int) -> dict[str, Any]:
        cls = type(value)
        own = ("__new__", "__reduce__", "__reduce_ex__")
        if any(getattr(cls, name) is not getattr(object, name) for name in own):
            raise RecipeError(f"{where} is a {cls.__name__}, which only its own code can copy")
        of = name_of(cls, where)
        state = value.__getstate__()
        if isinstance(value, nn.Module):
            state = {
                key: OrderedDict() if "_hooks" in key and isinstance(one, dict) else one
                for key, one in state.items()
            }
        return {"is": "object", "of": of, "state": self.told(state, where, depth + 1)}


class _Builder:
    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = tensors
        self._known: dict[int, Any] = {}

    def value(self, told: Any) -> Any:
        if not isinstance(told, dict):
            return told
        kind = told["is"]
        if kind == "known":
            return self._known[told["id"]]
        if "id" not in told:
            return self._named(kind, told)
        if kind in _MAPS or kind == "object":
            return self._filled(kind, told)
        made = self._made(kind, told)
        self._known[told["id"]] = made
        return made

    def _filled(self, kind: str, told: dict[str, Any]) -> Any:
        """Maps and objects are known before they are filled: they may hold themselves."""
        if kind in _MAPS:
            made: Any = _MAPS[kind]()
            self._known[told["id"]] = made
            for key, one in told["items"]:
                made[self.value(key)] = self.value(one)
            return made
        cls = _found(told["of"])
        made = cls.__new__(cls)
        self._known[told["id"]] = made
        state = self.value(told["state"])
        if hasattr(made, "__setstate__"):
            made.__setstate__(state)
            return made
        plain, slots = state if isinstance(state, tuple) else (state, None)
        made.__dict__.update(plain or {}) if plain else None
        for name, one in (slots or {}).items():
            object.__setattr__(made, name, one)
        return made

    def _made(self, kind: str, told: dict[str, Any]) -> Any:
        if kind in _CONTAINERS:
            return _CONTAINERS[kind](self.value(one) for one in told["items"])
        if kind == "weak":
            return weakref.ref(self.value(told["to"]))
        tensor = self._tensors[told["tensor"]]
        if kind == "parameter":
            return nn.Parameter(tensor, requires_grad=False)
        if kind == "tensor":
            return tensor
        array = tensor.numpy()
        return array[()] if kind == "scalar" else array

    @staticmethod
    def _named(kind: str, told: dict[str, Any]) -> Any:
        if kind == "name":
            return _found(told)
        if kind == "member":
            return _found(told["of"])[told["member"]]
        if kind == "dtype":
            return getattr(torch, told["name"])
        return np.dtype(told["name"]) if kind == "numpy dtype" else torch.device(told["name"])


def _found(name: Mapping[str, str]) -> Any:
    try:
        return _imported(name["module"], name["name"])
    except (ImportError, AttributeError) as error:
        raise RecipeError(f"{name['module']}.{name['name']} cannot be imported: {error}") from error


def _imported(module: str, name: str) -> Any:
    found: Any = sys.modules.get(module) or importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found

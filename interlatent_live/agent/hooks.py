"""Forward hooks that copy x and y of a module into the ring, in a few microseconds.

The usual tensor (contiguous float32 in host memory, as many rows as agent copies) is moved by one
``memmove`` straight into the slot under construction; everything else takes a slower path. CUDA
policies go through :mod:`interlatent_live.agent.cuda`. Nothing here may change what the policy
computes: hooks return None, allocate nothing on the policy's generator, and turn into nothing while
a compiler traces them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from difflib import get_close_matches
from threading import get_ident
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from interlatent_live.agent.acting import Gate, Point, row_width
from interlatent_live.errors import UserError
from interlatent_live.policies.hook_points import span_ends

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch.utils.hooks import RemovableHandle

    from interlatent_live.agent.cuda import CudaLane

HIDDEN: Final = ":hidden"
"""Suffix of a hook point that streams a recurrent layer's hidden state instead of its output."""

# ctypes.memmove gives the interpreter lock away around the call, which would invite the sender
# thread in exactly while the policy runs; the same function under PYFUNCTYPE keeps it.
_memmove = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)(
    ctypes.cast(ctypes.memmove, ctypes.c_void_p).value or 0
)

_ELEMENTWISE: Final = (
    nn.ReLU, nn.Tanh, nn.ELU, nn.SiLU, nn.GELU, nn.Sigmoid, nn.LeakyReLU, nn.Softplus, nn.Mish,
    nn.Hardtanh, nn.ReLU6, nn.SELU, nn.CELU, nn.Hardswish, nn.Hardsigmoid, nn.Softsign,
    nn.LogSigmoid, nn.Identity, nn.Dropout, nn.Softmax, nn.LogSoftmax, nn.LayerNorm,
    nn.RMSNorm, nn.BatchNorm1d,
)  # fmt: skip
"""Modules that keep the width of their input."""


def resolve(
    policy: nn.Module, hook_points: Sequence[str] | Mapping[str, nn.Module]
) -> dict[str, nn.Module]:
    """The modules that the hook points name; of a span, the last one, whose output is y.

    Args:
        policy: where dotted names are looked up.
        hook_points: dotted names (``"lstm:hidden"`` for a hidden state), spans ``first..last``, or
            modules by the name they shall be streamed under.

    Raises:
        UserError: when a name does not exist (the closest names are listed), or when its module
            cannot be read from outside (TorchScript, inside a compiled region, in-place).
    """
    if isinstance(hook_points, str):
        raise UserError(f"hook_points is the string {hook_points!r}; give a list of names")
    if not hook_points:
        raise UserError("no hook points were given; name at least one module of the policy")
    if isinstance(policy, torch.jit.ScriptModule):
        raise UserError(
            "the policy is a TorchScript module, on which PyTorch refuses forward hooks; load its "
            "weights into the eager module, or publish from outside with tap.publish(...)"
        )
    modules = dict(policy.named_modules())
    del modules[""]
    named: dict[str, nn.Module] = {}
    for name in hook_points:
        if isinstance(hook_points, Mapping):
            module = hook_points[name]
            _refuse_unreadable(name, module)
        else:
            for path in span_ends(name.removesuffix(HIDDEN)):
                if path not in modules:
                    raise UserError(_unknown(path, modules))
                module = modules[path]
                _refuse_compiled(name, path, modules, policy)
                _refuse_unreadable(name, module)
        if name in named:
            raise UserError(f"hook point {name!r} is named twice")
        named[name] = module
    return named


def beginnings(policy: nn.Module, modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Of each resolved hook point that is a span, the module whose input is x."""
    found = {}
    for name, last in modules.items():
        begin, end = span_ends(name)
        # Modules that were given under a name of the user's choice are no spans.
        if begin != end and dict(policy.named_modules()).get(end) is last:
            found[name] = policy.get_submodule(begin)
    return found


def _unknown(name: str, modules: Mapping[str, nn.Module]) -> str:
    close = get_close_matches(name, modules, n=5, cutoff=0.5)
    close += [other for other in modules if other not in close and name and name in other][:3]
    known = close or list(modules)[:12]
    said = "the closest are" if close else "the policy has"
    return f"the policy has no module {name!r}; {said} {', '.join(map(repr, known))}"


def _refuse_compiled(
    name: str, path: str, modules: Mapping[str, nn.Module], policy: nn.Module
) -> None:
    # A hook inside a compiled region is either not seen or breaks the graph, and then the fused
    # kernels, and with them the policy's numbers, are others.
    parts = path.split(".")
    enclosing = [("the policy", policy)]
    enclosing += [
        (repr(".".join(parts[:i])), modules[".".join(parts[:i])]) for i in range(1, len(parts))
    ]
    for where, module in enclosing:
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            raise UserError(
                f"hook point {name!r} lies inside {where}, which is compiled by torch.compile; a "
                "hook there would be skipped or would split the compiled graph and change the "
                "policy's "
                "numbers; compile smaller parts and hook these, or act with the uncompiled policy"
            )


def _refuse_unreadable(name: str, module: nn.Module) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        raise UserError(
            f"hook point {name!r} is a TorchScript module, on which PyTorch refuses forward hooks; "
            "load its weights into the eager module, or use tap.publish(...)"
        )
    if getattr(module, "inplace", False):
        raise UserError(
            f"hook point {name!r} works in place and overwrites its input before a hook can read "
            "it; hook the module before it"
        )


def known_widths(policy: nn.Module, name: str, module: nn.Module) -> tuple[int | None, int | None]:
    """d_in and d_out as far as the architecture alone tells them, else None.

    Knowing them before the first forward lets the stream start with the first step.
    """
    if name.endswith(HIDDEN):
        return _first_width(module), getattr(module, "hidden_size", None)
    begin, end = span_ends(name)
    if begin == end:
        return _widths(policy, name, module)
    try:
        first = policy.get_submodule(begin)
    except AttributeError:
        return None, None
    return _widths(policy, begin, first)[0], _widths(policy, end, module)[1]


def _widths(policy: nn.Module, name: str, module: nn.Module) -> tuple[int | None, int | None]:
    own = _first_width(module), _last_width(module)
    if own != (None, None) or not isinstance(module, _ELEMENTWISE):
        return own
    parent_name, _, child = name.rpartition(".")
    try:
        parent = policy.get_submodule(parent_name)
    except AttributeError:
        return None, None
    if not isinstance(parent, nn.Sequential) or not child.isdecimal():
        return None, None
    for sibling in reversed(list(parent)[: int(child)]):
        if (width := _last_width(sibling)) is not None:
            return width, width
        if not isinstance(sibling, _ELEMENTWISE):
            break
    return None, None


def _first_width(module: nn.Module) -> int | None:
    """Width of what goes in, None when the architecture does not tell."""
    match module:
        case nn.Linear():
            return module.in_features
        case nn.RNNBase() | nn.RNNCellBase():
            return int(module.input_size)
    return _kept_width(module) or _width_through(module, _first_width, reverse=False)


def _last_width(module: nn.Module) -> int | None:
    """Width of what comes out."""
    match module:
        case nn.Linear():
            return module.out_features
        case nn.RNNBase():
            return int(module.proj_size or module.hidden_size) * (1 + int(module.bidirectional))
        case nn.RNNCellBase():
            return int(module.hidden_size)
    return _kept_width(module) or _width_through(module, _last_width, reverse=True)


def _kept_width(module: nn.Module) -> int | None:
    """Width of a normalisation, which is the same on both sides."""
    match module:
        case nn.LayerNorm() | nn.RMSNorm():
            return int(module.normalized_shape[0]) if len(module.normalized_shape) == 1 else None
        case nn.BatchNorm1d():
            return int(module.num_features)
    return None


def _width_through(
    module: nn.Module, width_of: Callable[[nn.Module], int | None], *, reverse: bool
) -> int | None:
    """Width at an end of a plain Sequential: of its outermost child that tells."""
    if not isinstance(module, nn.Sequential) or type(module).forward is not nn.Sequential.forward:
        return None
    children = list(module)
    for child in reversed(children) if reverse else children:
        if (width := width_of(child)) is not None or not isinstance(child, _ELEMENTWISE):
            return width
    return None


WATCHED: Final = 4
"""Parameters looked at on each step; an optimiser's step touches them all."""
ALL_EVERY: Final = 64
"""After how many steps every parameter is looked at, for changes of single layers."""


def weights_watch(policy: nn.Module) -> Callable[[], bool]:
    """A cheap question for each step: whether a weight changed in place since now.

    It reads the version counters that autograd keeps per tensor, not the weights. Buffers, such as
    the running statistics of a batch norm that learns while acting, are not watched.
    """
    # Tensors made in inference mode carry no counter, and cannot be trained either.
    every = [parameter for parameter in policy.parameters() if not parameter.is_inference()]
    few = every[:: max(1, len(every) // WATCHED)][:WATCHED]
    known_few = sum(parameter._version for parameter in few)  # noqa: SLF001  torch's own counter
    known = sum(parameter._version for parameter in every)  # noqa: SLF001  likewise
    calls = 0

    def changed() -> bool:
        nonlocal calls
        calls += 1
        if calls % ALL_EVERY == 0:
            return sum(parameter._version for parameter in every) != known  # noqa: SLF001  likewise
        total = 0
        for parameter in few:
            total += parameter._version  # noqa: SLF001  likewise
        return total != known_few

    return changed


class HookSet:
    """The hooks of one tap: registered at construction, gone after :meth:`remove`.

    ``begins`` are the modules whose input is x, where it is not the hooked module's own.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        points: Mapping[str, Point],
        gate: Gate,
        lane: CudaLane | None = None,
        *,
        begins: Mapping[str, nn.Module] | None = None,
    ) -> None:
        self._handles: list[RemovableHandle] = []
        begins = begins or {}
        for name, module in modules.items():
            begun: list[Any] | None = None
            if name in begins:
                begun = [None]
                entering = _make_entering_hook(begun, gate)
                self._handles.append(
                    begins[name].register_forward_pre_hook(entering, with_kwargs=True)
                )
            hook = _make_hook(points[name], gate, lane, begun, hidden=name.endswith(HIDDEN))
            self._handles.append(module.register_forward_hook(hook, with_kwargs=True))

    def remove(self) -> None:
        """Take the hooks off; the policy is as it was before."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def _make_entering_hook(
    begun: list[Any], gate: Gate
) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    """Holds what goes into a span until its last module has run, in the same thread."""
    is_compiling = torch.compiler.is_compiling

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if is_compiling() or not gate.recording:
            return
        if gate.thread is None or gate.thread == get_ident():
            begun[0] = args[0] if args else next(iter(kwargs.values()), None)

    return hook


def _make_hook(
    point: Point, gate: Gate, lane: CudaLane | None, begun: list[Any] | None, *, hidden: bool
) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]:
    # A closure over locals: attribute look-ups on self would cost a microsecond per hook in all.
    float32 = torch.float32
    tensor = torch.Tensor
    is_compiling = torch.compiler.is_compiling

    def hook(
        _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        if is_compiling() or not gate.recording:
            return
        try:
            y = output if output.__class__ is tensor else _output_of(output, hidden=hidden)
            if not gate.explicit and (
                gate.explicit_only
                or y is None
                or y.requires_grad
                or (gate.thread is not None and gate.thread != get_ident())
            ):
                point.refuse(_refusal(gate, y))
                return
            if begun is None:
                x = args[0] if args else next(iter(kwargs.values()), None)
            else:
                x, begun[0] = begun[0], None
            if (
                x.__class__ is tensor
                and y is not None
                and x.numel() == point.x_numel
                and x.dtype is float32
                and x.is_cpu
                and x.is_contiguous()
                and (x.dim() > 1 or gate.envs == 1)
            ):
                if not gate.wants_y:
                    _memmove(point.x_base + gate.slot * point.x_bytes, x.data_ptr(), point.x_bytes)
                    point.fired = gate.block
                    return
                if (
                    y.numel() == point.y_numel
                    and y.dtype is float32
                    and y.is_cpu
                    and y.is_contiguous()
                    and gate.ring is not None
                ):
                    _memmove(point.x_base + gate.slot * point.x_bytes, x.data_ptr(), point.x_bytes)
                    to = point.y_base + gate.ring.y_slot(gate.block) * point.y_bytes
                    _memmove(to, y.data_ptr(), point.y_bytes)
                    point.fired = gate.block
                    return
            _store_slowly(point, gate, lane, x, y)
        except Exception as error:  # noqa: BLE001  a bug of ours must never reach the policy
            gate.fault(error)

    return hook


def _refusal(gate: Gate, y: torch.Tensor | None) -> str:
    if gate.explicit_only:
        return "outside"
    if y is None:
        return "output"
    return "grad" if y.requires_grad else "thread"


def _output_of(output: Any, *, hidden: bool) -> torch.Tensor | None:
    """The tensor that is y: the output, a tuple's first element, or the last hidden state."""
    if hidden and isinstance(output, tuple) and len(output) > 1:
        state = output[1]
        state = state[0] if isinstance(state, tuple) else state
        return state[-1] if isinstance(state, torch.Tensor) else None
    while isinstance(output, (tuple, list)) and output:
        output = output[0]
    return output if isinstance(output, torch.Tensor) else None


def _store_slowly(point: Point, gate: Gate, lane: CudaLane | None, x: Any, y: Any) -> None:
    """Any layout, dtype and device; also the first forwards, before the ring exists."""
    if reason := _unreadable(x, y):
        point.refuse(reason)
        return
    d_in, d_out = row_width(tuple(x.shape), gate.envs), row_width(tuple(y.shape), gate.envs)
    if d_in is None or d_out is None:
        point.refuse("batch", x.shape[0] if x.dim() else 0)
        return
    if gate.ring is not None and (point.d_in, point.d_out) != (d_in, d_out):
        point.refuse("late" if point.x is None else "width")
        return
    point.d_in, point.d_out = d_in, d_out
    wants_y = gate.wants_y
    if x.is_cuda and lane is not None and point.x is not None:
        lane.stage(point, gate, x, y if wants_y else None)
        return
    rows = _host(x).reshape(gate.envs, d_in)
    gate.store(point, rows, _host(y).reshape(gate.envs, d_out) if wants_y else None)


def _unreadable(x: Any, y: Any) -> str | None:
    if not isinstance(x, torch.Tensor):
        return "input"
    if not isinstance(y, torch.Tensor):
        return "output"
    if x.is_complex() or y.is_complex() or x.is_quantized or y.is_quantized:
        return "dtype"
    if x.is_cuda and torch.cuda.is_current_stream_capturing():
        return "capture"
    return None


def _host(value: torch.Tensor) -> Any:
    value = value.detach()
    # NumPy knows neither bfloat16 nor the 8-bit floats.
    if value.dtype not in (torch.float32, torch.float64, torch.float16):
        value = value.to(torch.float32)
    return value.to("cpu").numpy()

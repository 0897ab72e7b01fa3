"""How a hook point is written: a module's dotted name, or a span of two, ``first..last``.

A span's x is the input of ``first`` and its y the output of ``last``, for blocks that are no module
of their own, such as a linear layer and its activation in a flat Sequential.
"""

from __future__ import annotations

from typing import Final

SPAN: Final = ".."


def span_ends(hook_point: str) -> tuple[str, str]:
    """The modules whose input and output a hook point speaks of.

    ``"hidden.1"`` → the same twice; ``"hidden.0..hidden.1"`` → the two.
    """
    first, separator, last = hook_point.partition(SPAN)
    return (first, last) if separator else (hook_point, hook_point)

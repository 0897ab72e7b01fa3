"""See live what a reinforcement-learning agent is doing, in claims the stream keeps checking.

The public face is small: :func:`attach` puts a tap on a policy; everything else is reached through
its own subpackage or the command ``interlatent-live``. Names are resolved lazily, so importing the
package costs milliseconds and pulls in neither torch nor a socket library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interlatent_live.agent.attach import attach
    from interlatent_live.agent.tap import Tap

__version__ = "0.1.0"

_LAZY = {
    "attach": "interlatent_live.agent.attach",
    "Tap": "interlatent_live.agent.tap",
}

__all__ = ["Tap", "__version__", "attach"]


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value

"""The engine's adapter for a Ray cluster: Ray chooses the node, the supervisor is our own.

Needs the extra ``ray``. Nothing here imports it before a :class:`RayEngine` is made.
"""

from __future__ import annotations

from interlatent_live.engine.ray.adapter import RayEngine

__all__ = ["RayEngine"]

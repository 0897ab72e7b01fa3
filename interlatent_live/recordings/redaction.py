"""Leaving metrics out of what is recorded: their columns, their names, and what speaks of them.

A metric may say more of a person or a site than may be kept. Rows lose its column and manifests its
entry. Documents hold it in words (a predicate, a narrated value), so whatever entry of a list names
it is left out, and a document that names it elsewhere is not recorded at all.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from interlatent_live.stream import FeatureBatch, Manifest

_GONE: Final = object()


class Redaction:
    """Metrics by name that are not recorded; without names everything passes as it is."""

    def __init__(self, names: Sequence[str] = ()) -> None:
        self.names = tuple(dict.fromkeys(names))
        words = "|".join(re.escape(name) for name in sorted(self.names, key=len, reverse=True))
        self._mentions = re.compile(rf"(?<!\w)(?:{words})(?!\w)") if words else None

    def manifest(self, manifest: Manifest) -> Manifest:
        """The manifest without those metrics."""
        if not self.names:
            return manifest
        kept = tuple(one for one in manifest.metrics if one.name not in self.names)
        return replace(manifest, metrics=kept)

    def batch(self, batch: FeatureBatch, manifest: Manifest) -> FeatureBatch:
        """The rows without those columns; ``manifest`` is the one that they came under."""
        kept = [i for i, one in enumerate(manifest.metrics) if one.name not in self.names]
        if len(kept) == len(manifest.metrics):
            return batch
        metrics = np.ascontiguousarray(batch.steps.metrics[:, kept])
        return replace(batch, steps=replace(batch.steps, metrics=metrics))

    def document(self, payload: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The document without what names those metrics; ``None``: nothing of it may be kept."""
        if self._mentions is None:
            return payload
        cleaned = self._clean(payload)
        return None if cleaned is _GONE else cleaned

    def _clean(self, value: Any) -> Any:
        if isinstance(value, str):
            return _GONE if self._mentioned(value) else value
        if isinstance(value, list | tuple):
            cleaned = [self._clean(one) for one in value]
            return [one for one in cleaned if one is not _GONE]
        if isinstance(value, dict):
            kept = {key: self._clean(one) for key, one in value.items() if not self._mentioned(key)}
            return _GONE if any(one is _GONE for one in kept.values()) else kept
        return value

    def _mentioned(self, text: str) -> bool:
        return self._mentions is not None and self._mentions.search(text) is not None

"""Transcoders on disk, found by the policy they were trained on.

Folders are scanned once and again on request (a new version appears without a restart); tensors are
read when a policy first asks for them, with the hashes checked by the loader.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from interlatent_live.errors import UserError
from interlatent_live.transcoders.encoding import encode_activations
from interlatent_live.transcoders.native import find_transcoders

if TYPE_CHECKING:
    from collections.abc import Sequence

    from interlatent_live.pipeline.encoder import TranscoderLike
    from interlatent_live.stream import Activations, SparseCodes
    from interlatent_live.transcoders.encoding import EncodeBackend
    from interlatent_live.transcoders.native import TranscoderEntry
    from interlatent_live.transcoders.transcoder import Transcoder

BUILT_IN = Path(__file__).parent.parent / "data" / "transcoders"
"""The transcoders that the package carries."""


@dataclass(frozen=True, slots=True, eq=False)
class HeldTranscoder:
    """A loaded transcoder as the encoder's core sees it."""

    identity: str
    n_features: int
    d_in: int
    d_out: int
    transcoder: Transcoder


class FolderLibrary:
    """Transcoders under folders; earlier folders win over later ones.

    Raises:
        UserError: when a folder does not exist.
        CorruptFileError: when a description in it cannot be read.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = tuple(folders)
        self._entries: dict[tuple[str, str], tuple[TranscoderEntry, ...]] = {}
        self._held: dict[str, HeldTranscoder] = {}
        self.rescan()

    def rescan(self) -> None:
        """Look at the folders again."""
        entries: dict[tuple[str, str], tuple[TranscoderEntry, ...]] = {}
        for folder in self._folders:
            for key, found in find_transcoders(folder).items():
                entries[key] = (*entries.get(key, ()), *found)
        self._entries = entries

    def find(self, policy_hash: str, hook_point: str) -> HeldTranscoder | None:
        """The best transcoder for this policy at this hook point, loaded on first use.

        Raises:
            CorruptFileError: when its tensors are not what its description says.
        """
        found = self._entries.get((policy_hash, hook_point))
        if not found:
            return None
        entry = found[0]
        held = self._held.get(entry.identity)
        if held is None:
            transcoder = entry.load().transcoder
            config = transcoder.config
            held = HeldTranscoder(
                transcoder.identity, config.n_features, config.d_in, config.d_out, transcoder
            )
            self._held[entry.identity] = held
        return held

    def policies(self) -> dict[str, tuple[str, ...]]:
        """Hook points by policy hash."""
        found: dict[str, tuple[str, ...]] = {}
        for policy, hook_point in self._entries:
            found[policy] = (*found.get(policy, ()), hook_point)
        return found


class LibraryEncode:
    """Encodes with a library's transcoders on one backend (the CPU unless said)."""

    def __init__(self, backend: EncodeBackend | None = None) -> None:
        self._backend = backend

    def __call__(self, transcoder: TranscoderLike, activations: Activations) -> SparseCodes:
        """Codes of the rows of ``activations``.

        Raises:
            UserError: when the transcoder did not come from a :class:`FolderLibrary`.
        """
        if not isinstance(transcoder, HeldTranscoder):
            raise UserError(f"{transcoder.identity} did not come from a library of transcoders")
        return encode_activations(transcoder.transcoder, activations, self._backend)

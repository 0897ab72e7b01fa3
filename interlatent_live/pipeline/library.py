"""Transcoders on disk, found by the policy they were trained on; new versions while serving.

The library itself belongs to the service's loop. Looking at folders, reading tensors and checking
hashes takes long, so :class:`FolderWatch` does it elsewhere (a thread) and hands over a
:class:`Scan`, which the loop adopts between two batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from interlatent_live.errors import CorruptFileError, UserError
from interlatent_live.transcoders.encoding import encode_activations, weights_of
from interlatent_live.transcoders.native import folder_signature, scan_transcoders

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from interlatent_live.encoding.backend import EncoderWeights
    from interlatent_live.encoding.prepared import PreparedEncoders
    from interlatent_live.pipeline.encoder import TranscoderLike
    from interlatent_live.stream import Activations, SparseCodes
    from interlatent_live.transcoders.native import TranscoderEntry
    from interlatent_live.transcoders.transcoder import Transcoder

BUILT_IN = Path(__file__).parent.parent / "data" / "transcoders"
"""The transcoders that the package carries."""

Key = tuple[str, str]
"""Policy hash and hook point."""
Entries = dict[Key, tuple["TranscoderEntry", ...]]
"""What the folders hold, best first."""


@dataclass(frozen=True, slots=True, eq=False)
class HeldTranscoder:
    """A loaded transcoder as the encoder's core sees it, and its weights for any device."""

    identity: str
    n_features: int
    d_in: int
    d_out: int
    transcoder: Transcoder
    weights: EncoderWeights
    feature_names: Mapping[int, str]
    """Of features that are attached probes."""


def hold(entry: TranscoderEntry) -> HeldTranscoder:
    """Read a transcoder with every check there is.

    Raises:
        UserError: when it is gone.
        CorruptFileError: when its files are not what its description says.
    """
    loaded = entry.load()
    transcoder = loaded.transcoder
    if transcoder.identity != entry.identity:
        raise CorruptFileError(
            f"{entry.path} says that it is transcoder {entry.identity} and holds "
            f"{transcoder.identity}; save it again"
        )
    config = transcoder.config
    return HeldTranscoder(
        transcoder.identity,
        config.n_features,
        config.d_in,
        config.d_out,
        transcoder,
        weights_of(transcoder),
        loaded.provenance.feature_names(),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Scan:
    """What a look at the folders found."""

    entries: Entries
    loaded: Mapping[Key, HeldTranscoder]
    """By key: what is to be served from now on instead of what is; read and checked."""
    refused: tuple[str, ...]
    """One sentence for each transcoder that could not be used and was not said before."""


class FolderWatch:
    """Notices what changed in folders and reads what replaces something that is served.

    A change counts once two looks agree, so that a folder that is still being copied is left
    alone. Used from one thread.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = tuple(folders)
        self._seen = self._signature()
        self._settling: object = None
        self._found: dict[Path, Entries] = {}
        self._entries, said = self._scan()
        self._said = set(said)
        self._served: Mapping[Key, str | None] = {}

    @property
    def settling(self) -> bool:
        """Whether something changed and was not yet the same twice: look again soon."""
        return self._settling is not None

    def look(self, serving: Mapping[Key, str | None]) -> Scan | None:
        """Look once; ``None`` when there is nothing new, or a change has not settled.

        Args:
            serving: by policy hash and hook point, the identity that encodes there now; ``None``
                where a running agent has a hook point without a transcoder.
        """
        signature = self._signature()
        settled = signature != self._seen and signature == self._settling
        self._settling = None if settled or signature == self._seen else signature
        # An agent may have come in between, and be served what was the best then.
        if not settled and serving == self._served:
            return None
        problems: list[str] = []
        if settled:
            self._seen = signature
            self._entries, problems = self._scan()
        self._served = dict(serving)
        loaded: dict[Key, HeldTranscoder] = {}
        for key, identity in serving.items():
            for entry in self._entries.get(key, ()):
                if entry.identity == identity:
                    break
                try:
                    loaded[key] = hold(entry)
                    break
                except UserError as error:
                    problems.append(str(error))
                    self._entries[key] = tuple(e for e in self._entries[key] if e is not entry)
        refused = tuple(one for one in problems if one not in self._said)
        self._said = set(problems) if settled else self._said | set(problems)
        if not (settled or loaded or refused):
            return None
        entries = {key: found for key, found in self._entries.items() if found}
        return Scan(entries, loaded, refused)

    def _scan(self) -> tuple[Entries, list[str]]:
        problems: list[str] = []
        for folder in self._folders:
            try:
                found, refused = scan_transcoders(folder)
            except UserError as error:
                # Unmounted, or being replaced: what it held before still counts.
                problems.append(str(error))
            else:
                self._found[folder] = found
                problems += [str(error) for error in refused.values()]
        return _merged([self._found.get(folder, {}) for folder in self._folders]), problems

    def _signature(self) -> object:
        return tuple(folder_signature(folder) for folder in self._folders)


class FolderLibrary:
    """Transcoders under folders; earlier folders win over later ones.

    Raises:
        UserError: when a folder does not exist.
        CorruptFileError: when a description in it cannot be read.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = tuple(folders)
        scans = [scan_transcoders(folder) for folder in self.folders]
        for _, refused in scans:
            for error in refused.values():
                raise error
        self._entries = _merged([found for found, _ in scans])
        self._held: dict[str, HeldTranscoder] = {}

    def find(self, policy_hash: str, hook_point: str) -> HeldTranscoder | None:
        """The best transcoder for this policy at this hook point, loaded on first use.

        One that cannot be read gives way to the next best.

        Raises:
            CorruptFileError: when there are some and none can be read.
        """
        failed: UserError | None = None
        for entry in self._entries.get((policy_hash, hook_point), ()):
            held = self._held.get(entry.identity)
            if held is not None:
                return held
            try:
                held = hold(entry)
            except UserError as error:
                failed = failed or error
                continue
            self._held[entry.identity] = held
            return held
        if failed is not None:
            raise failed
        return None

    def policies(self) -> dict[str, tuple[str, ...]]:
        """Hook points by policy hash."""
        found: dict[str, tuple[str, ...]] = {}
        for (policy, hook_point), entries in self._entries.items():
            if not entries:
                continue
            found[policy] = (*found.get(policy, ()), hook_point)
        return found

    def adopt(self, scan: Scan) -> None:
        """From now on find what a look at the folders found."""
        self._entries = scan.entries
        for held in scan.loaded.values():
            self._held[held.identity] = held

    def reject(self, identity: str) -> None:
        """Find this one no more: it does not fit what it says it was trained on."""
        self.forget(identity)
        self._entries = {
            key: tuple(entry for entry in found if entry.identity != identity)
            for key, found in self._entries.items()
        }

    def forget(self, identity: str) -> None:
        """Let go of a transcoder's tensors; it is read again if it is asked for again."""
        self._held.pop(identity, None)


@dataclass(slots=True, eq=False)
class LibraryEncode:
    """Encodes with a library's transcoders on one device."""

    prepared: PreparedEncoders

    def __call__(self, transcoder: TranscoderLike, activations: Activations) -> SparseCodes:
        """Codes of the rows of ``activations``.

        Raises:
            UserError: when the transcoder did not come from a :class:`FolderLibrary`, or does not
                fit the device.
        """
        if not isinstance(transcoder, HeldTranscoder):
            raise UserError(f"{transcoder.identity} did not come from a library of transcoders")
        encoder = self.prepared.get(transcoder.identity, lambda: transcoder.weights)
        return encode_activations(transcoder.transcoder, activations, encoder)


def _merged(found: Sequence[Entries]) -> Entries:
    entries: Entries = {}
    for each in found:
        for key, these in each.items():
            entries[key] = (*entries.get(key, ()), *these)
    return entries

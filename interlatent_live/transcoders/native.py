"""The native format: a directory with ``transcoder.safetensors`` and ``transcoder.json``.

A transcoder file decides what people believe about an agent, and files travel, so loading trusts
nothing: every size is derived from the configuration and compared with the file before a tensor is
touched, the tensor file's SHA-256 stands in the JSON, and the identity is computed again from the
content. Nothing here can execute code.
"""

from __future__ import annotations

import hashlib
import math
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec
import torch
from safetensors.torch import save as save_safetensors

from interlatent_live.errors import CorruptFileError, MismatchError, UserError
from interlatent_live.transcoders.config import TranscoderConfig
from interlatent_live.transcoders.tensorfiles import read_checked_tensors, replace_file
from interlatent_live.transcoders.transcoder import Baselines, Transcoder

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA_VERSION: Final = 1
TENSORS_FILE: Final = "transcoder.safetensors"
JSON_FILE: Final = "transcoder.json"

_MAX_JSON_BYTES: Final = 16 << 20
_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_BASELINE_NAMES: Final = ("affine_weight", "affine_bias", "y_mean")


class ProbeFeature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A feature that is no learned latent but an attached linear probe, and what it tells.

    Its activation is the probe's log odds above those of its threshold where the probe says yes,
    and 0 elsewhere, so the calibrated probability is σ(activation + log(t / (1 − t))).
    """

    feature: int
    name: str
    """What people are shown."""
    target: str
    """Such as ``terminated within 1 s``."""
    threshold: float
    """Probability t above which the probe says yes."""


class Provenance(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a transcoder comes from and what it may be used on.

    ``policy_hash`` and ``hook_point`` say on which module of which policy it was trained; using it
    anywhere else is refused. ``version`` and ``parent`` (an identity) change when it is fine-tuned:
    live labels belong to one version.
    """

    policy_hash: str
    hook_point: str
    dataset_hash: str = ""
    """Content hash of the activation dataset it was trained on."""
    seed: int | None = None
    command: str = ""
    """The command line that made it."""
    created: str = ""
    """UTC time, ISO 8601."""
    versions: dict[str, str] = {}
    """Versions of the packages that made it."""
    normalisation: dict[str, float] = {}
    """Scales of x and y that were used in training and are folded into the weights."""
    training: dict[str, Any] = {}
    """The recipe: steps, batch, learning rate and so on, as the trainer was configured."""
    evaluation: dict[str, Any] = {}
    """Summary of the evaluation: FVU beside its baselines, L0, live features."""
    environment: str = ""
    version: int = 1
    parent: str = ""
    source: str = "native"
    """The format it was imported from."""
    probes: tuple[ProbeFeature, ...] = ()
    """Features that are probes; always the last ones."""

    def feature_names(self) -> dict[int, str]:
        """Names by feature, of those that have one by construction."""
        return {probe.feature: probe.name for probe in self.probes}


class _Document(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    schema: int
    identity: str
    content_hash: str
    tensors_sha256: str
    config: TranscoderConfig
    y_variance: float | None
    provenance: Provenance


@dataclass(frozen=True)
class LoadedTranscoder:
    """A transcoder with where it comes from."""

    transcoder: Transcoder
    provenance: Provenance
    path: Path


@dataclass(frozen=True, slots=True)
class TranscoderEntry:
    """One transcoder found on disk; its tensors are not loaded yet."""

    path: Path
    identity: str
    provenance: Provenance
    n_features: int

    def load(self) -> LoadedTranscoder:
        """Load it, with every check."""
        return load_transcoder(self.path)


def save_transcoder(path: Path, transcoder: Transcoder, provenance: Provenance) -> Path:
    """Write the directory ``path``; an existing transcoder there is replaced, file by file.

    The JSON is written last and names the hash of the tensor file, so a torn write is noticed.

    Returns:
        ``path``.

    Raises:
        UserError: when ``path`` is a file.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file; a transcoder is saved as a directory, name another")
    path.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: tensor.detach().to("cpu", torch.float32).contiguous()
        for name, tensor in transcoder.tensors().items()
    }
    baselines = transcoder.baselines
    if baselines is not None:
        for name in _BASELINE_NAMES:
            tensor = getattr(baselines, name)
            tensors[f"baseline.{name}"] = tensor.detach().to("cpu", torch.float32).contiguous()
    payload = save_safetensors(tensors)
    document = _Document(
        schema=SCHEMA_VERSION,
        identity=transcoder.identity,
        content_hash="sha256:" + transcoder.content_hash,
        tensors_sha256=hashlib.sha256(payload).hexdigest(),
        config=transcoder.config,
        y_variance=None if baselines is None else baselines.y_variance,
        provenance=provenance,
    )
    replace_file(path / TENSORS_FILE, payload)
    replace_file(
        path / JSON_FILE, msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"
    )
    return path


def load_transcoder(
    path: Path, *, policy_hash: str | None = None, hook_point: str | None = None
) -> LoadedTranscoder:
    """Load and check the directory ``path``.

    Args:
        path: the directory.
        policy_hash: when given, the policy it must have been trained on.
        hook_point: when given, the hook point it must have been trained on.

    Raises:
        UserError: when there is no transcoder at ``path``.
        CorruptFileError: when a file is truncated, altered, of another version or hostile.
        MismatchError: when it belongs to another policy or hook point; names both.
    """
    document = _read_document(path)
    provenance = document.provenance
    check_binding(provenance, document.identity, policy_hash=policy_hash, hook_point=hook_point)
    tensors_path = path / TENSORS_FILE
    expected = document.config.tensor_shapes()
    if document.y_variance is not None:
        if not (math.isfinite(document.y_variance) and document.y_variance > 0):
            raise CorruptFileError(f"{path / JSON_FILE} states a y_variance that is not positive")
        config = document.config
        expected |= {
            "baseline.affine_weight": (config.d_in, config.d_out),
            "baseline.affine_bias": (config.d_out,),
            "baseline.y_mean": (config.d_out,),
        }
    tensors = read_checked_tensors(
        tensors_path,
        {name: ("F32", shape) for name, shape in expected.items()},
        sha256=document.tensors_sha256,
    )
    baselines = None
    if document.y_variance is not None:
        baseline = {name: tensors.pop(f"baseline.{name}") for name in _BASELINE_NAMES}
        if not all(bool(torch.isfinite(tensor).all()) for tensor in baseline.values()):
            raise CorruptFileError(f"{tensors_path} holds baselines that are not finite")
        baselines = Baselines(**baseline, y_variance=document.y_variance)
    if any(not 0 <= probe.feature < document.config.n_features for probe in provenance.probes):
        raise CorruptFileError(f"{path / JSON_FILE} names a probe that is none of its features")
    try:
        transcoder = Transcoder.from_tensors(document.config, tensors, baselines)
    except UserError as error:
        raise CorruptFileError(f"{tensors_path} is not usable: {error}") from error
    if "sha256:" + transcoder.content_hash != document.content_hash:
        raise CorruptFileError(
            f"{path} holds content sha256:{transcoder.content_hash[:12]}, but its {JSON_FILE} says "
            f"{document.content_hash[:19]}: configuration and tensors do not belong together"
        )
    return LoadedTranscoder(transcoder, provenance, path)


def check_binding(
    provenance: Provenance,
    identity: str,
    *,
    policy_hash: str | None = None,
    hook_point: str | None = None,
) -> None:
    """Refuse a transcoder that was trained on another policy or hook point.

    Raises:
        MismatchError: naming both hashes or both hook points.
    """
    if policy_hash is not None and provenance.policy_hash != policy_hash:
        raise MismatchError(
            f"transcoder {identity} was trained on policy {provenance.policy_hash}, but this "
            f"policy is {policy_hash}; train one for it, or load the policy it was trained on"
        )
    if hook_point is not None and provenance.hook_point != hook_point:
        raise MismatchError(
            f"transcoder {identity} was trained at hook point {provenance.hook_point!r}, not at "
            f"{hook_point!r}; use the transcoder of that hook point"
        )


def find_transcoders(directory: Path) -> dict[tuple[str, str], tuple[TranscoderEntry, ...]]:
    """Every transcoder under ``directory``, by (policy hash, hook point).

    Several for one key (seeds, widths, versions) are sorted best first: highest version, then
    lowest evaluated FVU, then identity. Only the JSON files are read.

    Raises:
        UserError: when the directory does not exist.
        CorruptFileError: when one of the JSON files is not ours.
    """
    found, refused = scan_transcoders(directory)
    for error in refused.values():
        raise error
    return found


def scan_transcoders(
    directory: Path,
) -> tuple[dict[tuple[str, str], tuple[TranscoderEntry, ...]], dict[Path, CorruptFileError]]:
    """As :func:`find_transcoders`, for a service that goes on without what cannot be read.

    Returns:
        What was found, and the error of each folder whose JSON file is not ours.

    Raises:
        UserError: when the directory does not exist.
    """
    if not directory.is_dir():
        raise UserError(f"{directory} is no directory; name the folder with the transcoders")
    found: dict[tuple[str, str], list[TranscoderEntry]] = {}
    refused: dict[Path, CorruptFileError] = {}
    for file in sorted(directory.rglob(JSON_FILE)):
        try:
            document = _read_document(file.parent)
        except CorruptFileError as error:
            refused[file.parent] = error
            continue
        except (UserError, OSError):
            continue  # gone since the folder was listed
        entry = TranscoderEntry(
            file.parent, document.identity, document.provenance, document.config.n_features
        )
        provenance = document.provenance
        found.setdefault((provenance.policy_hash, provenance.hook_point), []).append(entry)
    return {key: tuple(sorted(each, key=preference)) for key, each in found.items()}, refused


def folder_signature(directory: Path) -> frozenset[tuple[str, int, int, int]]:
    """What changes whenever a transcoder under ``directory`` comes, goes or is written again.

    Names, inodes, times and sizes of folders and of transcoders' files: a few system calls for
    each folder and no byte of a file is read, so it can be asked every second. Empty when the
    directory does not exist.
    """
    seen: set[tuple[str, int, int, int]] = set()
    pending = [str(directory)]
    while pending:
        folder = pending.pop()
        with suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                with suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    elif entry.name in {JSON_FILE, TENSORS_FILE}:
                        stat = entry.stat()
                        seen.add((entry.path, stat.st_ino, stat.st_mtime_ns, stat.st_size))
    return frozenset(seen)


def preference(entry: TranscoderEntry) -> tuple[int, float, str]:
    """Sorts the transcoders of one hook point best first."""
    fvu: Any = entry.provenance.evaluation.get("fvu")
    known = isinstance(fvu, int | float) and math.isfinite(fvu)
    return -entry.provenance.version, fvu if known else math.inf, entry.identity


def _read_document(path: Path) -> _Document:
    file = path / JSON_FILE
    if not file.is_file():
        raise UserError(f"{path} holds no {JSON_FILE}; name a directory saved by interlatent-live")
    if file.stat().st_size > _MAX_JSON_BYTES:
        raise CorruptFileError(f"{file} is larger than {_MAX_JSON_BYTES >> 20} MiB; not read")
    raw = file.read_bytes()
    with suppress(*_UNREADABLE):
        schema = msgspec.json.decode(raw, type=dict[str, Any]).get("schema")
        if schema != SCHEMA_VERSION:
            raise CorruptFileError(
                f"{file} has schema {schema!r}; this version reads schema {SCHEMA_VERSION}"
            )
    try:
        return msgspec.json.decode(raw, type=_Document)
    except (*_UNREADABLE, UserError) as error:
        raise CorruptFileError(f"{file} is not a transcoder's description: {error}") from error

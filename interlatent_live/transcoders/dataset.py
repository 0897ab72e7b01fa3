"""Activation pairs on disk: checksummed safetensors shards and a manifest.

Collecting takes minutes to hours and robots do not repeat themselves, so a dataset survives the
death of its writer: shards appear whole or not at all, the manifest names each with its SHA-256,
and work is committed in units that a second run can skip. Memory is bounded by one shard.

A directory holds ``dataset.json`` and ``shard-NNNNN.safetensors``. Columns of a shard, n rows
each: ``episode`` u32 (dense over the dataset), ``env`` u16, ``t`` u32, ``time_ns`` i64,
``controller`` u8, ``flags`` u8, ``metrics`` f64 [n, M], and per hook point ``x:HOOK`` f32 [n, d_in]
and ``y:HOOK`` f32 [n, d_out].
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
from safetensors.numpy import load as load_numpy
from safetensors.numpy import save as save_numpy

from interlatent_live.errors import CorruptFileError, UserError
from interlatent_live.stream import Activations, Controller, MetricSpec, Role, StepBatch, Steps
from interlatent_live.transcoders.tensorfiles import read_safetensors_header, replace_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

SCHEMA_VERSION: Final = 1
MANIFEST_FILE: Final = "dataset.json"
SHARD_BYTES: Final = 64 << 20
"""A shard is closed when its columns reach this size."""

_MAX_MANIFEST_BYTES: Final = 64 << 20
_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_DTYPES: Final[dict[str, tuple[str, type[np.generic]]]] = {
    "episode": ("U32", np.uint32),
    "env": ("U16", np.uint16),
    "t": ("U32", np.uint32),
    "time_ns": ("I64", np.int64),
    "controller": ("U8", np.uint8),
    "flags": ("U8", np.uint8),
    "metrics": ("F64", np.float64),
}


class HookWidths(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A hook point of the dataset: x [d_in] and y [d_out]."""

    name: str
    d_in: int
    d_out: int


class MetricColumn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A metric column; see :class:`interlatent_live.stream.MetricSpec`."""

    name: str
    unit: str = ""
    role: Role = Role.STATE
    description: str = ""

    def spec(self) -> MetricSpec:
        """As the stream's value."""
        return MetricSpec(self.name, self.unit, self.role, self.description)


class Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is fixed before the first row; a second run with another header is refused."""

    policy_hash: str
    environment: str
    hook_points: tuple[HookWidths, ...]
    metrics: tuple[MetricColumn, ...]
    source: str
    """``rollout``, ``stream`` or another word for where the rows come from."""
    settings: dict[str, Any] = {}
    """Everything that decides the rows: seeds, noise, episodes per block, run ids."""

    def hook(self, name: str) -> HookWidths:
        """The hook point of this name.

        Raises:
            UserError: when the dataset has none of that name.
        """
        for hook in self.hook_points:
            if hook.name == name:
                return hook
        names = ", ".join(hook.name for hook in self.hook_points)
        raise UserError(f"the dataset has no hook point {name!r}; it has {names}")


class Shard(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of rows."""

    file: str
    rows: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The index of a dataset."""

    schema: int
    header: Header
    shards: tuple[Shard, ...] = ()
    rows: int = 0
    episodes: int = 0
    progress: int = 0
    """Units of work committed: blocks of a rollout, input rows of a stream."""
    complete: bool = False
    state: dict[str, Any] = {}
    """What the producer needs to go on."""

    def dataset_hash(self) -> str:
        """``"sha256:…"`` over header and shard hashes: the content, not when it was made."""
        digest = hashlib.sha256(msgspec.json.encode(self.header, order="sorted"))
        for shard in self.shards:
            digest.update(f"{shard.rows}:{shard.sha256};".encode())
        return "sha256:" + digest.hexdigest()


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Columns of n rows; ``activations`` has (x, y) per hook point."""

    episode: NDArray[np.uint32]
    env: NDArray[np.uint16]
    t: NDArray[np.uint32]
    time_ns: NDArray[np.int64]
    controller: NDArray[np.uint8]
    flags: NDArray[np.uint8]
    metrics: NDArray[np.float64]
    activations: dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]

    def __len__(self) -> int:
        return len(self.episode)

    @property
    def nbytes(self) -> int:
        """Bytes of all columns."""
        plain = sum(getattr(self, name).nbytes for name in _DTYPES)
        return int(plain + sum(x.nbytes + y.nbytes for x, y in self.activations.values()))

    def columns(self) -> dict[str, NDArray[Any]]:
        """Columns by their name in a shard, with the file's dtypes."""
        out: dict[str, NDArray[Any]] = {
            name: np.ascontiguousarray(getattr(self, name), dtype)
            for name, (_, dtype) in _DTYPES.items()
        }
        for hook, (x, y) in self.activations.items():
            out[f"x:{hook}"] = np.ascontiguousarray(x, np.float32)
            out[f"y:{hook}"] = np.ascontiguousarray(y, np.float32)
        return out

    def steps(self, first_seq: int = 0) -> Steps:
        """The columns that every batch of steps has."""
        return Steps(
            first_seq=first_seq,
            env=self.env,
            episode=self.episode,
            t=self.t,
            time_ns=self.time_ns,
            controller=self.controller,
            flags=self.flags,
            metrics=self.metrics,
        )


def concatenate(parts: Sequence[Rows]) -> Rows:
    """Rows of several parts, in order; at least one part."""
    plain = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _DTYPES}
    activations = {
        hook: (
            np.concatenate([part.activations[hook][0] for part in parts]),
            np.concatenate([part.activations[hook][1] for part in parts]),
        )
        for hook in parts[0].activations
    }
    return Rows(**plain, activations=activations)


class DatasetWriter:
    """Appends rows, commits units of work, and goes on where a dead writer stopped.

    Args:
        path: the directory, made if needed.
        header: what is fixed; an existing dataset there must have the same.

    Raises:
        UserError: when ``path`` holds another dataset.
        CorruptFileError: when its manifest is damaged.
    """

    def __init__(self, path: Path, header: Header) -> None:
        self.path = path
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is a file; a dataset is a directory, name another")
        path.mkdir(parents=True, exist_ok=True)
        self.manifest = Manifest(schema=SCHEMA_VERSION, header=header)
        if (path / MANIFEST_FILE).exists():
            self.manifest = read_manifest(path)
            if self.manifest.header != header:
                raise UserError(
                    f"{path} already holds a dataset with other settings "
                    f"({_difference(self.manifest.header, header)}); name another directory"
                )
        known = {shard.file for shard in self.manifest.shards}
        for file in path.glob("shard-*.safetensors*"):
            if file.name not in known:  # left by a writer that died before its commit
                file.unlink()
        self._pending: list[Rows] = []
        self._pending_bytes = 0
        self._fresh: list[Shard] = []

    @property
    def rows(self) -> int:
        """Committed rows."""
        return self.manifest.rows

    def append(self, rows: Rows) -> None:
        """Add rows to the current unit of work; whole shards go to disk at once."""
        if len(rows) == 0:
            return
        self._pending.append(rows)
        self._pending_bytes += rows.nbytes
        if self._pending_bytes >= SHARD_BYTES:
            self._write_shard()

    def commit(self, *, episodes: int, progress: int, state: dict[str, Any] | None = None) -> None:
        """Make everything appended so far part of the dataset.

        Args:
            episodes: episodes in the dataset by now.
            progress: units of work done by now.
            state: what the producer needs to go on.
        """
        if self._pending:
            self._write_shard()
        manifest = self.manifest
        self.manifest = msgspec.structs.replace(
            manifest,
            shards=(*manifest.shards, *self._fresh),
            rows=manifest.rows + sum(shard.rows for shard in self._fresh),
            episodes=episodes,
            progress=progress,
            state=manifest.state if state is None else state,
        )
        self._fresh = []
        self._write_manifest()

    def finish(self) -> Manifest:
        """Mark the dataset complete and return its manifest."""
        self.manifest = msgspec.structs.replace(self.manifest, complete=True)
        self._write_manifest()
        return self.manifest

    def _write_shard(self) -> None:
        rows = concatenate(self._pending)
        payload = save_numpy(rows.columns())
        name = f"shard-{len(self.manifest.shards) + len(self._fresh):05d}.safetensors"
        replace_file(self.path / name, payload)
        self._fresh.append(Shard(name, len(rows), hashlib.sha256(payload).hexdigest()))
        self._pending, self._pending_bytes = [], 0

    def _write_manifest(self) -> None:
        raw = msgspec.json.format(msgspec.json.encode(self.manifest), indent=1)
        replace_file(self.path / MANIFEST_FILE, raw + b"\n")


class ActivationDataset:
    """A dataset for reading; every shard is checked against its SHA-256 when it is read.

    Raises:
        UserError: when there is no dataset at ``path``.
        CorruptFileError: when its manifest is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = read_manifest(path)

    @property
    def header(self) -> Header:
        """What was fixed before the first row."""
        return self.manifest.header

    @property
    def hash(self) -> str:
        """Content hash, ``"sha256:…"``."""
        return self.manifest.dataset_hash()

    def __len__(self) -> int:
        return self.manifest.rows

    def shards(self) -> Iterator[Rows]:
        """Every shard's rows, one at a time, in order.

        Raises:
            CorruptFileError: when a shard is missing, truncated or altered.
        """
        for shard in self.manifest.shards:
            yield self._read(shard)

    def load(self, hook_point: str, *, max_bytes: int = 2 << 30) -> HookRows:
        """All activation pairs of one hook point, or an even sample of whole episodes that fits.

        Args:
            hook_point: its name.
            max_bytes: limit on x and y together.

        Raises:
            UserError: when there is no such hook point, or no row.
            CorruptFileError: as :meth:`shards`.
        """
        widths = self.header.hook(hook_point)
        if not len(self):
            raise UserError(f"{self.path} holds no rows yet; run collect to the end first")
        row_bytes = 4 * (widths.d_in + widths.d_out)
        keep_one_in = -(-len(self) * row_bytes // max_bytes)
        parts = []
        for rows in self.shards():
            x, y = rows.activations[hook_point]
            own = rows.controller == int(Controller.POLICY)
            part = HookRows(hook_point, x, y, rows.episode, own)
            if keep_one_in > 1:
                part = part.take(_scatter(rows.episode) % keep_one_in == 0)
            parts.append(part)
        columns = ("x", "y", "episode", "own")
        return HookRows(
            hook_point,
            *(np.concatenate([getattr(part, column) for part in parts]) for column in columns),
        )

    def step_batches(self, rows_per_batch: int = 64) -> Iterator[StepBatch]:
        """The dataset as a stream of step batches, as an agent would have sent them."""
        seq = 0
        for rows in self.shards():
            for begin in range(0, len(rows), rows_per_batch):
                part = slice(begin, begin + rows_per_batch)
                some = Rows(
                    **{name: getattr(rows, name)[part] for name in _DTYPES},
                    activations={
                        hook: (x[part], y[part]) for hook, (x, y) in rows.activations.items()
                    },
                )
                every = np.arange(len(some), dtype=np.uint16)
                yield StepBatch(
                    some.steps(seq),
                    {hook: Activations(x, y, every) for hook, (x, y) in some.activations.items()},
                )
                seq += len(some)

    def _read(self, shard: Shard) -> Rows:
        path = self.path / shard.file
        if not path.is_file() or path.parent != self.path:
            raise CorruptFileError(f"{path} is missing; collect the dataset again")
        header = read_safetensors_header(path)
        expected = _expected_columns(self.header, shard.rows)
        if header != expected:
            odd = sorted(
                name for name in header.keys() | expected if header.get(name) != expected.get(name)
            )
            raise CorruptFileError(f"{path} does not hold the columns of its dataset: {odd}")
        payload = path.read_bytes()
        if hashlib.sha256(payload).hexdigest() != shard.sha256:
            raise CorruptFileError(f"{path} was altered: its SHA-256 is not the manifest's")
        columns = load_numpy(payload)
        activations = {
            hook.name: (columns[f"x:{hook.name}"], columns[f"y:{hook.name}"])
            for hook in self.header.hook_points
        }
        return Rows(**{name: columns[name] for name in _DTYPES}, activations=activations)


@dataclass(frozen=True, slots=True, eq=False)
class HookRows:
    """Activation pairs of one hook point."""

    hook_point: str
    x: NDArray[np.float32]
    """[n, d_in]."""
    y: NDArray[np.float32]
    """[n, d_out]."""
    episode: NDArray[np.uint32]
    """[n]."""
    own: NDArray[np.bool_] | None = None
    """[n] whether the policy by itself brought the row about; None: all of them."""

    def __len__(self) -> int:
        return len(self.x)

    def take(self, rows: NDArray[Any]) -> HookRows:
        """The rows of a mask or of indices."""
        own = None if self.own is None else self.own[rows]
        return HookRows(self.hook_point, self.x[rows], self.y[rows], self.episode[rows], own)


@dataclass(frozen=True, slots=True)
class Split:
    """Three disjoint sets of episodes, as row masks [n]."""

    train: NDArray[np.bool_]
    validation: NDArray[np.bool_]
    test: NDArray[np.bool_]

    def among(self, rows: NDArray[np.bool_] | None) -> Split:
        """The same sets without the rows that a mask [n] leaves out; None leaves out none."""
        if rows is None:
            return self
        return Split(self.train & rows, self.validation & rows, self.test & rows)


def split_by_episode(episode: NDArray[np.uint32]) -> Split:
    """80 % of the episodes to train on, 10 % to calibrate and choose on, 10 % to report on.

    Rows of one episode never fall into two sets: they are neighbours in time, and a row whose
    neighbour was trained on is not held out.

    Raises:
        UserError: when there are fewer than 10 episodes.
    """
    ids = np.unique(episode)
    if len(ids) < 10:
        raise UserError(
            f"{len(ids)} episodes are too few to hold any out; collect at least 10 (episodes, not "
            "rows, are what is independent)"
        )
    # Every tenth in a fixed scattered order: exact shares for any number of episodes.
    rank = np.argsort(np.argsort(_scatter(ids), kind="stable"), kind="stable")
    place = (rank % 10)[np.searchsorted(ids, episode)]
    return Split(train=place >= 2, validation=place == 0, test=place == 1)


def some_rows(n: int, most: int) -> NDArray[np.intp]:
    """Up to ``most`` of n rows, in order: all of them, or a random sample that is always the same.

    Every other row would not do: episodes are collected side by side, so that a stride picks the
    same few of them.
    """
    if n <= most:
        return np.arange(n)
    chosen = np.random.default_rng(n).choice(n, most, replace=False, shuffle=False)
    return np.sort(chosen)


def read_manifest(path: Path) -> Manifest:
    """Read a dataset's manifest.

    Raises:
        UserError: when there is none.
        CorruptFileError: when it is damaged or of another version.
    """
    file = path / MANIFEST_FILE
    if not file.is_file():
        raise UserError(f"{path} holds no {MANIFEST_FILE}; name a directory made by collect")
    if file.stat().st_size > _MAX_MANIFEST_BYTES:
        raise CorruptFileError(f"{file} is larger than {_MAX_MANIFEST_BYTES >> 20} MiB; not read")
    raw = file.read_bytes()
    with suppress(*_UNREADABLE):
        schema = msgspec.json.decode(raw, type=dict[str, Any]).get("schema")
        if schema != SCHEMA_VERSION:
            raise CorruptFileError(
                f"{file} has schema {schema!r}; this version reads schema {SCHEMA_VERSION}"
            )
    try:
        return msgspec.json.decode(raw, type=Manifest)
    except _UNREADABLE as error:
        raise CorruptFileError(f"{file} is not a dataset's manifest: {error}") from error


def _expected_columns(header: Header, n: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    columns: dict[str, tuple[str, tuple[int, ...]]] = {
        name: (dtype, (n,)) for name, (dtype, _) in _DTYPES.items()
    }
    columns["metrics"] = ("F64", (n, len(header.metrics)))
    for hook in header.hook_points:
        columns[f"x:{hook.name}"] = ("F32", (n, hook.d_in))
        columns[f"y:{hook.name}"] = ("F32", (n, hook.d_out))
    return columns


def _difference(old: Header, new: Header) -> str:
    parts: list[str] = []
    for name in old.__struct_fields__:
        before, after = getattr(old, name), getattr(new, name)
        if before == after:
            continue
        if name == "settings":
            keys = sorted(k for k in before.keys() | after if before.get(k) != after.get(k))
            parts.extend(f"{key}: {before.get(key)!r}, now {after.get(key)!r}" for key in keys)
        else:
            parts.append(f"{name} differs")
    return "; ".join(parts)


def _scatter(ids: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """A fixed pseudo-random 64-bit number per episode id (SplitMix64's finaliser)."""
    value = ids.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))

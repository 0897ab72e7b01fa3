"""Recordings as one Parquet table, for pandas, Polars, DuckDB and everything else that reads it.

One row is one step. Metrics are columns of their own, so that a query names them; the active
features of a hook point are two list columns, since they are few of many. Rows are written in
groups as they are read, so a recording of any length takes the memory of one group.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from interlatent_live.errors import UserError
from interlatent_live.recordings.playing import Playing, Selection
from interlatent_live.recordings.reader import read_recording
from interlatent_live.stream import Controller, StepFlag
from interlatent_live.wire.messages import FeaturesMessage, Hello

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from interlatent_live.stream import FeatureBatch, Manifest, SparseCodes

GROUP_ROWS: Final = 65_536
"""Rows of a group, about."""
_FLAGS: Final = {
    "terminated": StepFlag.TERMINATED,
    "truncated": StepFlag.TRUNCATED,
    "no_activation": StepFlag.NO_ACTIVATION,
}
_NAMES: Final = {"agent": "agent", "run": "run_id", "boot": "boot_id"}


@dataclass(slots=True)
class _Group:
    manifests: list[Manifest] = field(default_factory=list)
    batches: list[FeatureBatch] = field(default_factory=list)
    rows: int = 0


def export_rows(
    files: Sequence[Path],
    to: Path,
    *,
    selection: Selection | None = None,
    told: Callable[[str], None] = lambda _: None,
    on_progress: Callable[[int], None] = lambda _: None,
) -> int:
    """Write every recorded row as a row of a Parquet table; returns how many.

    Columns: ``time`` (timestamp in ns, UTC), ``agent``, ``run``, ``boot``, ``seq``, ``env``,
    ``episode``, ``t``, ``controller`` (a word), ``terminated``, ``truncated``, ``no_activation``,
    ``metric.NAME`` (float64, null where absent or not of this run), and for each hook point
    ``features.HOOK.index`` (list of uint32), ``features.HOOK.value`` (list of float32) and
    ``features.HOOK.error`` (float32, null where unknown).

    Args:
        files: as :func:`~interlatent_live.recordings.playing.recording_files` orders them.
        to: the table; it is there whole or not at all.
        selection: what of the recordings is wanted; everything by default.
        told: hears one sentence about what cannot be read.
        on_progress: told the rows written so far.

    Raises:
        UserError: when pyarrow is missing, or nothing is recorded that is wanted.
    """
    try:
        pyarrow = importlib.import_module("pyarrow")
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise UserError("Parquet export needs pyarrow: pip install pyarrow") from None
    schema, manifests = _schema(files, pyarrow)
    to.parent.mkdir(parents=True, exist_ok=True)
    temporary = to.with_name(f".{to.name}.{os.getpid()}")
    written, group = 0, _Group()
    try:
        with parquet.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for played in Playing(files, selection or Selection(), told).messages():
                if not isinstance(played.message, FeaturesMessage):
                    continue
                batch = played.message.batch
                group.manifests.append(manifests[batch.boot_id])
                group.batches.append(batch)
                group.rows += len(batch.steps)
                if group.rows >= GROUP_ROWS:
                    written += _write(writer, schema, group, pyarrow)
                    group = _Group()
                    on_progress(written)
            if group.rows:
                written += _write(writer, schema, group, pyarrow)
                on_progress(written)
        if not written:
            raise UserError("nothing that is wanted is in these recordings; nothing was written")
        temporary.replace(to)
    finally:
        temporary.unlink(missing_ok=True)
    return written


def _schema(files: Sequence[Path], pyarrow: Any) -> tuple[Any, dict[str, Manifest]]:
    """The columns of all runs together, in order of appearance, and the runs by boot."""
    manifests: dict[str, Manifest] = {}
    metrics: dict[str, None] = {}
    hooks: dict[str, None] = {}
    for file in files:
        for one in read_recording(file, wanted=lambda topic: topic.startswith("hello/")):
            if isinstance(one.message, Hello):
                manifests.setdefault(one.message.manifest.boot_id, one.message.manifest)
                metrics.update(dict.fromkeys(one.message.manifest.metric_names()))
                hooks.update(dict.fromkeys(one.message.transcoders or {}))
    name = pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
    columns = [
        ("time", pyarrow.timestamp("ns", tz="UTC")),
        *((column, name) for column in ("agent", "run", "boot")),
        ("seq", pyarrow.uint64()),
        ("env", pyarrow.uint16()),
        ("episode", pyarrow.uint32()),
        ("t", pyarrow.uint32()),
        ("controller", name),
        *((flag, pyarrow.bool_()) for flag in _FLAGS),
        *((f"metric.{metric}", pyarrow.float64()) for metric in metrics),
    ]
    for hook in hooks:
        columns += [
            (f"features.{hook}.index", pyarrow.list_(pyarrow.uint32())),
            (f"features.{hook}.value", pyarrow.list_(pyarrow.float32())),
            (f"features.{hook}.error", pyarrow.float32()),
        ]
    return pyarrow.schema(columns), manifests


def _write(writer: Any, schema: Any, group: _Group, pyarrow: Any) -> int:
    columns = [_column(one.name, one.type, group, pyarrow) for one in schema]
    writer.write_table(pyarrow.Table.from_arrays(columns, schema=schema))
    return group.rows


def _column(name: str, kind: Any, group: _Group, pyarrow: Any) -> Any:
    batches = group.batches
    if name.startswith("metric."):
        parts = [
            _metric(name.removeprefix("metric."), manifest, batch)
            for manifest, batch in zip(group.manifests, batches, strict=True)
        ]
        return pyarrow.array(np.concatenate(parts), kind, from_pandas=True)
    if name.startswith("features."):
        hook, _, what = name.removeprefix("features.").rpartition(".")
        return _features(hook, what, kind, batches, pyarrow)
    if name in _NAMES:
        words = [getattr(one, _NAMES[name]) for one in group.manifests]
        return _words(words, [len(one.steps) for one in batches], kind, pyarrow)
    steps = [one.steps for one in batches]
    if name == "controller":
        codes = np.concatenate([one.controller for one in steps])
        indices = pyarrow.array(codes.astype(np.int32), mask=codes >= len(Controller))
        words = [one.name.lower() for one in Controller]
        values: Any = pyarrow.DictionaryArray.from_arrays(indices, words)
    elif name in _FLAGS:
        flags = np.concatenate([one.flags for one in steps])
        values = pyarrow.array((flags & int(_FLAGS[name])) != 0)
    elif name == "seq":
        counted = [np.arange(one.first_seq, one.first_seq + len(one)) for one in steps]
        values = pyarrow.array(np.concatenate(counted))
    else:
        key = "time_ns" if name == "time" else name
        values = pyarrow.array(np.concatenate([getattr(one, key) for one in steps]))
    return values.cast(kind)


def _metric(name: str, manifest: Manifest, batch: FeatureBatch) -> Any:
    names = manifest.metric_names()
    if name not in names:
        return np.full(len(batch.steps), np.nan)
    return batch.steps.metrics[:, names.index(name)]


def _words(words: Sequence[str], rows: Sequence[int], kind: Any, pyarrow: Any) -> Any:
    distinct = list(dict.fromkeys(words))
    indices = np.repeat([distinct.index(word) for word in words], rows).astype(np.int32)
    return pyarrow.DictionaryArray.from_arrays(
        pyarrow.array(indices), pyarrow.array(distinct, pyarrow.string())
    ).cast(kind)


def _features(
    hook: str, what: str, kind: Any, batches: Sequence[FeatureBatch], pyarrow: Any
) -> Any:
    codes: list[SparseCodes | None] = [one.codes.get(hook) for one in batches]
    if what == "error":
        parts = [
            np.full(len(batch.steps), np.nan, np.float32) if one is None else one.error
            for one, batch in zip(codes, batches, strict=True)
        ]
        return pyarrow.array(np.concatenate(parts), kind, from_pandas=True)
    counts = [
        np.zeros(len(batch.steps), np.int64) if one is None else np.diff(one.indptr)
        for one, batch in zip(codes, batches, strict=True)
    ]
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int32)
    present = [getattr(one, what) for one in codes if one is not None]
    values = np.concatenate(present) if present else np.empty(0)
    return pyarrow.ListArray.from_arrays(
        pyarrow.array(offsets), pyarrow.array(values, kind.value_type)
    )

"""Profiles as tables: records, Parquet, pandas, Polars, CSV; the libraries only when asked for."""

from __future__ import annotations

import csv
import importlib
import os
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from interlatent_live.errors import UserError
from interlatent_live.statistics.profile import COLUMNS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from types import ModuleType

    from interlatent_live.statistics.profile import ProfileTable
    from interlatent_live.stream import MetricSpec

SCHEMA: Final = (
    "feature", "metric", "unit", "role", "window", "n", "density", *COLUMNS, "reason",
)  # fmt: skip
"""Columns of every export, in order; undefined values are null, with ``reason`` saying why r is."""


def to_columns(table: ProfileTable) -> dict[str, Any]:
    """Flat columns of length U × M; float columns hold NaN where a file format will hold null."""
    u, m = table.r.shape
    out: dict[str, Any] = {
        "feature": np.repeat(table.features.astype(np.int64), m),
        "metric": [spec.name for spec in table.specs] * u,
        "unit": [spec.unit for spec in table.specs] * u,
        "role": [str(spec.role) for spec in table.specs] * u,
        "window": [table.window] * (u * m),
        "n": np.tile(table.rows.astype(np.float64), u),
        "density": np.repeat(table.density, m),
    }
    for name in COLUMNS:
        out[name] = getattr(table, name).ravel()
    out["reason"] = [table.why(i, j) or None for i in range(u) for j in range(m)]
    return out


def to_arrays(table: ProfileTable) -> tuple[dict[str, Any], list[str]]:
    """The same as arrays for the wire, and the sentences that ``reason`` [U, M] indexes.

    ``rows`` is [M], ``features`` and ``density`` [U], the others [U, M]; NaN where undefined, −1
    where there is no reason.
    """
    sentences: dict[str, int] = {}
    u, m = table.r.shape
    reason = np.full((u, m), -1, np.int32)
    for i, j in zip(*np.nonzero(~np.isfinite(table.r)), strict=True):
        why = table.why(int(i), int(j))
        if why:
            reason[i, j] = sentences.setdefault(why, len(sentences))
    arrays: dict[str, Any] = {
        "features": table.features.astype(np.int64),
        "rows": table.rows.astype(np.float64),
        "density": np.asarray(table.density, np.float64),
        "reason": reason,
    }
    arrays |= {name: np.asarray(getattr(table, name), np.float64) for name in COLUMNS}
    return arrays, list(sentences)


def from_arrays(
    arrays: Mapping[str, Any], reasons: Sequence[str], metrics: Sequence[MetricSpec], window: str
) -> dict[str, Any]:
    """The columns of :func:`to_columns` from :func:`to_arrays`, without a correlator."""
    u, m = len(arrays["features"]), len(metrics)
    out: dict[str, Any] = {
        "feature": np.repeat(arrays["features"], m),
        "metric": [spec.name for spec in metrics] * u,
        "unit": [spec.unit for spec in metrics] * u,
        "role": [str(spec.role) for spec in metrics] * u,
        "window": [window] * (u * m),
        "n": np.tile(arrays["rows"], u),
        "density": np.repeat(arrays["density"], m),
    }
    for name in COLUMNS:
        out[name] = arrays[name].ravel()
    out["reason"] = [reasons[i] if i >= 0 else None for i in arrays["reason"].ravel().tolist()]
    return out


def columns_to_parquet(columns: Mapping[str, Any], path: Path) -> int:
    """Write columns as Parquet atomically; returns the number of rows.

    Raises:
        UserError: when pyarrow is not installed.
    """
    pyarrow = _need("pyarrow", "Parquet export")
    parquet = importlib.import_module("pyarrow.parquet")
    built = pyarrow.table(
        {
            name: pyarrow.array(values, from_pandas=True)
            if isinstance(values, np.ndarray)
            else pyarrow.array(values, pyarrow.string())
            for name, values in columns.items()
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    parquet.write_table(built, temporary)
    temporary.replace(path)
    return int(built.num_rows)


def columns_to_csv(columns: Mapping[str, Any], path: Path) -> int:
    """Write columns as CSV, empty where undefined; returns the number of rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = list(zip(*(_plain(columns[name]) for name in SCHEMA), strict=True))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(SCHEMA)
        writer.writerows(rows)
    return len(rows)


def _plain(values: Any) -> list[Any]:
    if not isinstance(values, np.ndarray):
        return list(values)
    return [None if value != value else value for value in values.tolist()]  # noqa: PLR0124 - NaN


def columns_to_pandas(columns: Mapping[str, Any]) -> Any:
    """A pandas DataFrame of columns.

    Raises:
        UserError: when pandas is not installed.
    """
    return _need("pandas", "a pandas DataFrame").DataFrame(dict(columns))


def columns_to_polars(columns: Mapping[str, Any]) -> Any:
    """A Polars DataFrame of columns, nulls where undefined.

    Raises:
        UserError: when Polars is not installed.
    """
    polars = _need("polars", "a Polars DataFrame")
    return polars.DataFrame(dict(columns), nan_to_null=True)


def to_parquet(table: ProfileTable, path: Path) -> int:
    """Write Parquet atomically; returns the number of rows.

    Raises:
        UserError: when pyarrow is not installed.
    """
    return columns_to_parquet(to_columns(table), path)


def to_pandas(table: ProfileTable) -> Any:
    """A pandas DataFrame.

    Raises:
        UserError: when pandas is not installed.
    """
    return columns_to_pandas(to_columns(table))


def to_polars(table: ProfileTable) -> Any:
    """A Polars DataFrame, nulls where undefined.

    Raises:
        UserError: when Polars is not installed.
    """
    return columns_to_polars(to_columns(table))


def to_csv(table: ProfileTable, path: Path) -> int:
    """Write CSV, empty where undefined; returns the number of rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    records = table.records()
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, SCHEMA)
        writer.writeheader()
        writer.writerows(records)
    return len(records)


def _need(module: str, what: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{what} needs {module}: pip install {module}") from error

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
    from pathlib import Path
    from types import ModuleType

    from interlatent_live.statistics.profile import ProfileTable

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


def to_parquet(table: ProfileTable, path: Path) -> int:
    """Write Parquet atomically; returns the number of rows.

    Raises:
        UserError: when pyarrow is not installed.
    """
    pyarrow = _need("pyarrow", "Parquet export")
    parquet = importlib.import_module("pyarrow.parquet")
    arrays = {
        name: pyarrow.array(values, from_pandas=True)
        if isinstance(values, np.ndarray)
        else pyarrow.array(values, pyarrow.string())
        for name, values in to_columns(table).items()
    }
    built = pyarrow.table(arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    parquet.write_table(built, temporary)
    temporary.replace(path)
    return int(built.num_rows)


def to_pandas(table: ProfileTable) -> Any:
    """A pandas DataFrame.

    Raises:
        UserError: when pandas is not installed.
    """
    return _need("pandas", "a pandas DataFrame").DataFrame(to_columns(table))


def to_polars(table: ProfileTable) -> Any:
    """A Polars DataFrame, nulls where undefined.

    Raises:
        UserError: when Polars is not installed.
    """
    polars = _need("polars", "a Polars DataFrame")
    return polars.DataFrame(to_columns(table), nan_to_null=True)


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

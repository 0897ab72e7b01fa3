from __future__ import annotations

import csv

import numpy as np
import pytest

from interlatent_live.errors import CorruptFileError, UserError
from interlatent_live.statistics.comparison import compare_tables
from interlatent_live.statistics.config import CorrelatorConfig
from interlatent_live.statistics.correlator import Correlator
from interlatent_live.statistics.exemplars import ExemplarRows
from interlatent_live.statistics.export import SCHEMA, to_csv, to_pandas, to_parquet, to_polars
from interlatent_live.statistics.memory import memory_bytes, memory_parts
from interlatent_live.statistics.query import ProfileQuery, query_profiles
from interlatent_live.statistics.snapshot import load_state, save_state
from interlatent_live.stream import MetricSpec
from tests.statistics.streams import codes_from_dense, part, sparse_dense, steps_of

SPECS = (MetricSpec("height", "m"), MetricSpec("speed", "m/s"), MetricSpec("still"))
CONFIG = CorrelatorConfig(grid_rows=64, pass_rows=256, pane_steps=256, sliding=(1024,))


def fed(n=3000, features=30, config=CONFIG):
    rng = np.random.default_rng(0)
    dense = sparse_dense(rng, n, features, 0.15)
    metrics = np.column_stack([rng.normal(size=(n, 2)), np.ones(n)])
    metrics[:, 0] += dense[:, 3]
    steps = steps_of(metrics, envs=2, episode_steps=50)
    correlator = Correlator(SPECS, features, config)
    for low in range(0, n, 250):
        correlator.update(part(steps, low, low + 250), codes_from_dense(dense[low : low + 250]))
    return correlator


@pytest.mark.parametrize("sort", ["feature", "density", "r", "abs_r", "effect_size", "auroc"])
@pytest.mark.parametrize("descending", [True, False])
def test_pages_hold_every_pair_once_in_order(sort, descending):
    correlator = fed()
    seen, cursor, values = [], None, []
    while True:
        query = ProfileQuery(sort=sort, descending=descending, limit=7, cursor=cursor)
        page = query_profiles(correlator, query)
        assert page.matched == 90
        seen += [(item["feature"], item["metric"]) for item in page.items]
        column = "r" if sort == "abs_r" else sort
        values += [item[column] for item in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert len(seen) == len(set(seen)) == 90
    known = [abs(v) if sort == "abs_r" else v for v in values if v is not None]
    assert known == sorted(known, reverse=descending)
    missing = [i for i, v in enumerate(values) if v is None]
    assert missing == list(range(90 - len(missing), 90))


def test_filters():
    correlator = fed()
    page = query_profiles(
        correlator, ProfileQuery(metric="height", min_abs_r=0.3, excludes_zero=True)
    )
    assert [item["feature"] for item in page.items] == [3]
    assert page.items[0]["lo"] > 0
    page = query_profiles(correlator, ProfileQuery(features=(1, 2), window="last:1024"))
    assert {item["feature"] for item in page.items} == {1, 2}
    assert page.window == "last:1024"


def test_foreign_cursors_and_bad_questions_are_refused():
    correlator = fed(n=500)
    page = query_profiles(correlator, ProfileQuery(limit=5))
    with pytest.raises(UserError, match="another question"):
        query_profiles(correlator, ProfileQuery(limit=5, metric="speed", cursor=page.next_cursor))
    for cursor in ("x", "bm90IGpzb24=", "W10=", "MTI="):
        with pytest.raises(UserError, match="cursor"):
            query_profiles(correlator, ProfileQuery(cursor=cursor))
    with pytest.raises(UserError, match="sort"):
        query_profiles(correlator, ProfileQuery(sort="luck"))
    with pytest.raises(UserError, match="limit"):
        query_profiles(correlator, ProfileQuery(limit=0))


def test_parquet_round_trip_keeps_nulls_and_reasons(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    table = fed().table()
    path = tmp_path / "out" / "profiles.parquet"
    assert to_parquet(table, path) == 90
    read = parquet.read_table(path)
    assert tuple(read.column_names) == SCHEMA
    rows = read.to_pylist()
    records = table.records()
    for got, expected in zip(rows, records, strict=True):
        assert got == expected
    still = [row for row in rows if row["metric"] == "still"]
    assert all(row["r"] is None and "did not vary" in row["reason"] for row in still)
    assert list(tmp_path.joinpath("out").iterdir()) == [path]


def test_data_frames_hold_the_same_rows():
    table = fed().table()
    records = table.records()
    pandas = pytest.importorskip("pandas")
    frame = to_pandas(table)
    assert list(frame.columns) == list(SCHEMA)
    assert len(frame) == 90
    assert frame["r"].isna().sum() == sum(record["r"] is None for record in records)
    assert pandas.isna(frame.loc[frame.metric == "still", "r"]).all()
    pytest.importorskip("polars")
    assert to_polars(table).to_dicts() == records


def test_csv_has_empty_cells_where_undefined(tmp_path):
    path = tmp_path / "profiles.csv"
    assert to_csv(fed().table(), path) == 90
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["r"] for row in rows if row["metric"] == "still"} == {""}


def test_snapshot_survives_the_disk_and_refuses_damage(tmp_path):
    correlator = fed()
    path = tmp_path / "state.safetensors"
    size = save_state(correlator.state(), path)
    assert path.stat().st_size == size
    assert list(tmp_path.iterdir()) == [path]
    again = Correlator.restore(load_state(path), SPECS, CONFIG)
    np.testing.assert_array_equal(again.table().r, correlator.table().r)
    np.testing.assert_array_equal(again.table().auroc, correlator.table().auroc)
    assert load_state(path).meta["last_seq"] == {str(k): v for k, v in correlator.last_seq.items()}
    data = path.read_bytes()
    for damaged in (data[:100], b"", data[: len(data) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(CorruptFileError, match="snapshot"):
            load_state(path)
    with pytest.raises(CorruptFileError):
        load_state(tmp_path / "missing")


def test_a_state_of_other_metrics_is_refused():
    state = fed(n=500).state()
    with pytest.raises(UserError, match="metrics"):
        Correlator.restore(state, SPECS[:2], CONFIG)
    with pytest.raises(UserError, match="windows"):
        Correlator.restore(state, SPECS, CorrelatorConfig())


@pytest.mark.parametrize(
    ("features", "config"),
    [
        (64, CorrelatorConfig(pane_steps=512, sliding=(2048,))),
        (200, CorrelatorConfig(deep_features=50, units=16, max_envs=4)),
        (512, CorrelatorConfig.core(pane_steps=1024)),
    ],
)
def test_memory_is_what_the_configuration_computes(features, config):
    rng = np.random.default_rng(0)
    correlator = Correlator(SPECS, features, config)
    n, active = 30_000, 8
    for low in range(0, n, 1000):
        dense = np.zeros((1000, features), np.float32)
        columns = np.argsort(rng.random((1000, features)), axis=1)[:, :active]
        np.put_along_axis(dense, columns, rng.random((1000, active)).astype(np.float32) + 0.1, 1)
        metrics = rng.normal(size=(1000, 3))
        steps = steps_of(metrics, first_seq=low, envs=4, episode_steps=300)
        correlator.update(steps, codes_from_dense(dense))
    correlator.finish()
    parts = memory_parts(config, features, 3, active_per_step=active, envs=4)
    assert sum(parts.values()) == memory_bytes(config, features, 3, active_per_step=active, envs=4)
    waiting = parts.get("unfinished episodes", 0)
    held = correlator.waiting_bytes
    assert held <= waiting
    # Rows that wait come and go; everything else is full by now and must be what was computed.
    steady = sum(parts.values()) - waiting - parts["waiting rows"]
    assert correlator.nbytes - held == pytest.approx(steady, rel=0.1)


def test_what_changed_since_an_earlier_profile_comes_first():
    before = fed(n=3000).table()
    rng = np.random.default_rng(9)
    dense = sparse_dense(rng, 3000, 30, 0.15)
    metrics = np.column_stack([rng.normal(size=(3000, 2)), np.ones(3000)])
    metrics[:, 1] += 2 * dense[:, 8]
    correlator = Correlator(SPECS, 30, CONFIG)
    correlator.update(steps_of(metrics, envs=2, episode_steps=50), codes_from_dense(dense))
    changes = compare_tables(before, correlator.table())
    assert len(changes) == 90
    assert {(c.feature, c.metric) for c in changes[:2]} == {(8, "speed"), (3, "height")}
    grown = next(c for c in changes if (c.feature, c.metric) == (8, "speed"))
    assert grown.lo is not None
    assert grown.lo > 0
    assert changes[-1].z_difference is None
    with pytest.raises(UserError, match="same features"):
        compare_tables(before, correlator.table([1, 2]))


def test_the_rows_of_exemplars_are_those_that_are_shown_with_what_follows_them():
    correlator = fed()
    rows = correlator.exemplar_rows()
    assert list(rows.position) == sorted(set(rows.position.tolist()))
    at = {int(p): i for i, p in enumerate(rows.position)}
    shown = [
        one
        for feature in range(correlator.n_features)
        for some in correlator.exemplars(feature).values()
        for one in some
    ]
    assert shown
    for one in shown:
        i = at[one.position]
        assert (rows.env[i], rows.t[i]) == (one.env, one.t)
        later = np.isfinite(one.context[len(one.context) // 2 + 1 :]).any(axis=1)
        assert rows.after[i] >= np.cumprod(later).sum()
    assert rows.after.max() > 0
    again = ExemplarRows.joined([rows, rows])
    assert again.position.tolist() == rows.position.tolist()
    assert again.after.tolist() == rows.after.tolist()

"""Any sharding, batching, crash point, replay and merge order gives the same statistics."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from interlatent_live.statistics.config import CorrelatorConfig
from interlatent_live.statistics.correlator import Correlator, CorrelatorState
from interlatent_live.statistics.screening import DiscoveryLog
from interlatent_live.statistics.sketches import Grid
from interlatent_live.stream import Controller, MetricSpec, StepFlag, Steps
from tests.statistics.streams import codes_from_dense, sparse_dense, steps_of

ENVS, ROWS, FEATURES = 3, 900, 8
SPECS = (MetricSpec("a"), MetricSpec("b"))


def _stream() -> tuple[Steps, np.ndarray]:
    rng = np.random.default_rng(7)
    dense = sparse_dense(rng, ROWS, FEATURES, 0.25)
    metrics = rng.normal(size=(ROWS, 2)) + 1e6
    metrics[:, 0] += dense[:, 2]
    metrics[200:260, 1] = np.nan
    metrics[333] = 1e9
    steps = steps_of(metrics, envs=ENVS, episode_steps=40)
    steps.controller[100:130] = Controller.HUMAN
    steps.flags[400:405] |= int(StepFlag.NO_ACTIVATION)
    return steps, dense


STEPS, DENSE = _stream()
GRID = Grid.learn(STEPS.metrics[:100], 16)
CONFIG = CorrelatorConfig(
    pane_steps=64, half_lives=(200.0,), sliding=(256,), coalesce=50, pass_rows=100, units=8,
    lags=4, acf_lags=(1, 2, 4, 8), auroc_bins=16, grid=GRID, row_sample=64, max_envs=4,
    exemplars_top=3, exemplars_random=3, event_horizon=8,
)  # fmt: skip


def take(rows: np.ndarray) -> tuple[Steps, np.ndarray, np.ndarray]:
    columns = {
        name: getattr(STEPS, name)[rows]
        for name in ("env", "episode", "t", "time_ns", "controller", "flags", "metrics")
    }
    return Steps(first_seq=0, **columns), DENSE[rows], rows.astype(np.uint64)


def feed(correlator: Correlator, rows: np.ndarray) -> None:
    if len(rows):
        steps, dense, seq = take(rows)
        correlator.update(steps, codes_from_dense(dense), seq=seq)


def straight() -> Correlator:
    out = Correlator(SPECS, FEATURES, CONFIG)
    for low in range(0, ROWS, 64):
        feed(out, np.arange(low, min(low + 64, ROWS)))
    return out


WHOLE = straight()


def assert_same(got: Correlator, expected: Correlator) -> None:
    for window in expected.windows():
        a, b = expected.table(window=window), got.table(window=window)
        np.testing.assert_allclose(b.n_on, a.n_on, rtol=1e-9, err_msg=window)
        np.testing.assert_allclose(b.rows, a.rows, rtol=1e-9, err_msg=window)
        np.testing.assert_allclose(b.r, a.r, atol=1e-9, err_msg=window)
        np.testing.assert_allclose(b.mean_on, a.mean_on, rtol=1e-14, err_msg=window)
        np.testing.assert_allclose(b.mean_off, a.mean_off, rtol=1e-14, err_msg=window)
    a, b = expected.table(), got.table()
    for name in ("episodes", "bouts", "on_steps", "longest", "auroc", "quantiles"):
        np.testing.assert_array_equal(getattr(b, name), getattr(a, name), err_msg=name)
    assert b.episodes_total == a.episodes_total
    np.testing.assert_array_equal(got.counts.scalars()[:3], expected.counts.scalars()[:3])
    np.testing.assert_array_equal(got.counts.metric_nan, expected.counts.metric_nan)
    assert got.deep is not None
    assert expected.deep is not None
    np.testing.assert_array_equal(got.deep.events.on, expected.deep.events.on)
    np.testing.assert_array_equal(got.deep.cofiring.counts, expected.deep.cofiring.counts)
    np.testing.assert_array_equal(got.deep.betting.played, expected.deep.betting.played)
    np.testing.assert_allclose(got.deep.betting.log_e(), expected.deep.betting.log_e(), atol=1e-9)
    assert got.deep.units.bits == expected.deep.units.bits
    assert set(got.deep.units.keys.tolist()) == set(expected.deep.units.keys.tolist())
    for feature in range(FEATURES):
        mine, theirs = got.exemplars(feature), expected.exemplars(feature)
        assert {k: [e.position for e in v] for k, v in mine.items()} == {
            k: [e.position for e in v] for k, v in theirs.items()
        }


class Sharding(RuleBasedStateMachine):
    """Shards by agent copy, fed in uneven batches, crashing, restored and replayed, then merged."""

    @initialize(owner=st.lists(st.integers(0, 2), min_size=ENVS, max_size=ENVS))
    def start(self, owner: list[int]) -> None:
        # A shard starts from the same reference value, as it does when one process splits a stream.
        self.rows = [np.flatnonzero(np.isin(STEPS.env, np.flatnonzero(np.array(owner) == s)))
                     for s in range(3)]  # fmt: skip
        self.shards = [Correlator(SPECS, FEATURES, CONFIG) for _ in range(3)]
        self.fed = [0, 0, 0]
        self.saved: list[tuple[CorrelatorState, int] | None] = [None, None, None]

    @rule(shard=st.integers(0, 2), count=st.integers(1, 200))
    def more(self, shard: int, count: int) -> None:
        low = self.fed[shard]
        feed(self.shards[shard], self.rows[shard][low : low + count])
        self.fed[shard] = min(low + count, len(self.rows[shard]))

    @rule(shard=st.integers(0, 2))
    def save(self, shard: int) -> None:
        self.saved[shard] = (self.shards[shard].state(), self.fed[shard])

    @rule(shard=st.integers(0, 2), overlap=st.integers(0, 80))
    def crash(self, shard: int, overlap: int) -> None:
        saved = self.saved[shard]
        if saved is None:
            self.shards[shard] = Correlator(SPECS, FEATURES, CONFIG)
            self.fed[shard] = 0
            return
        self.shards[shard] = Correlator.restore(saved[0], SPECS, CONFIG)
        self.fed[shard] = max(saved[1] - overlap, 0)

    @rule(shard=st.integers(0, 2))
    def look(self, shard: int) -> None:
        self.shards[shard].table()

    def teardown(self) -> None:
        if not hasattr(self, "shards"):
            return
        for shard in range(3):
            feed(self.shards[shard], self.rows[shard][self.fed[shard] :])
        order = np.random.default_rng(sum(self.fed)).permutation(3)
        merged = self.shards[order[0]]
        for i in order[1:]:
            merged.merge(self.shards[i])
        assert_same(merged, WHOLE)


Sharding.TestCase.settings = settings(
    max_examples=12,
    stateful_step_count=10,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestSharding = Sharding.TestCase


def test_shards_with_other_reference_values_merge_all_the_same():
    late = np.flatnonzero(STEPS.env == 0)
    shards = [Correlator(SPECS, FEATURES, CONFIG) for _ in range(2)]
    feed(shards[0], np.flatnonzero(STEPS.env != 0))
    feed(shards[1], late)
    shards[1].merge(shards[0])
    for window in WHOLE.windows():
        a, b = WHOLE.table(window=window), shards[1].table(window=window)
        np.testing.assert_allclose(b.r, a.r, atol=1e-9, err_msg=window)


def test_coalescing_and_batching_change_nothing():
    other = Correlator(SPECS, FEATURES, replace(CONFIG, coalesce=1, pass_rows=1))
    for row in range(ROWS):
        feed(other, np.array([row]))
    assert_same(other, WHOLE)


def test_looks_fall_on_the_same_episode_however_rows_came():
    logs = []
    for size, pass_rows in ((64, 100), (7, 1), (ROWS, 100)):
        other = Correlator(SPECS, FEATURES, replace(CONFIG, pass_rows=pass_rows))
        other.looks = log = DiscoveryLog(first_look=4)
        for low in range(0, ROWS, size):
            feed(other, np.arange(low, min(low + size, ROWS)))
            if size == 7:
                other.table()
        other.finish()
        assert_same(other, WHOLE)
        logs.append(log.looks)
    first = logs[0]
    assert [(look.episodes, look.at_episodes) for look in first] == [(4, 4), (8, 8), (16, 16)]
    for looks in logs[1:]:
        for one, other_look in zip(looks, first, strict=True):
            assert (one.episodes, one.at_episodes) == (other_look.episodes, other_look.at_episodes)
            assert [(f.feature, f.metric) for f in one.found] == [
                (f.feature, f.metric) for f in other_look.found
            ]
            for ours, theirs in zip(one.found, other_look.found, strict=True):
                assert abs(ours.r - theirs.r) < 1e-9
                assert abs(ours.p - theirs.p) < 1e-9

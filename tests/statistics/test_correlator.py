from __future__ import annotations

import tracemalloc
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from interlatent_live.errors import UserError
from interlatent_live.statistics.config import CorrelatorConfig, SliceSpec, rowwise
from interlatent_live.statistics.correlator import Correlator
from interlatent_live.statistics.exemplars import ExemplarKind
from interlatent_live.stream import Controller, MetricSpec, StepFlag
from tests.statistics.streams import codes_from_dense, part, rows_of, sparse_dense, steps_of

SMALL = CorrelatorConfig(
    pane_steps=128, half_lives=(256.0,), sliding=(512,), grid_rows=64, pass_rows=256, units=32
)
SPECS = tuple(MetricSpec(f"m{i}") for i in range(3))


def stream(n=2000, features=12, *, seed=0, offset=0.0, envs=4, episode_steps=50):
    rng = np.random.default_rng(seed)
    dense = sparse_dense(rng, n, features, 0.2)
    metrics = rng.normal(size=(n, 3)) + offset
    metrics[:, 0] += dense[:, 0]
    return steps_of(metrics, envs=envs, episode_steps=episode_steps), dense


def feed(correlator, steps, dense, batch=37):
    for low in range(0, len(steps), batch):
        high = min(low + batch, len(steps))
        correlator.update(part(steps, low, high), codes_from_dense(dense[low:high]))
    return correlator


def exact_r(a, d):
    """Pearson r by rational arithmetic, square roots in float."""
    n = len(a)
    fa, fd = [Fraction(float(x)) for x in a], [Fraction(float(x)) for x in d]
    sa, sd = sum(fa), sum(fd)
    cov = sum(x * y for x, y in zip(fa, fd, strict=True)) - sa * sd / n
    va = sum(x * x for x in fa) - sa * sa / n
    vd = sum(x * x for x in fd) - sd * sd / n
    return float(cov) / (float(va) ** 0.5 * float(vd) ** 0.5)


@pytest.mark.parametrize("offset", [0.0, 1.0, 1e4, 1e7, -1e7])
def test_r_and_means_agree_with_exact_arithmetic(offset):
    steps, dense = stream(700, offset=offset)
    correlator = feed(Correlator(SPECS, 12, SMALL), steps, dense)
    table = correlator.table()
    for f in (0, 3, 11):
        for m in range(3):
            column = steps.metrics[:, m]
            assert table.r[f, m] == pytest.approx(exact_r(dense[:, f], column), abs=1e-9)
            on = dense[:, f] > 0
            mean_on = float(sum(Fraction(float(x)) for x in column[on]) / int(on.sum()))
            mean_off = float(sum(Fraction(float(x)) for x in column[~on]) / int((~on).sum()))
            assert abs(table.mean_on[f, m] - mean_on) <= max(1e-9, 4e-16 * abs(offset))
            assert abs(table.mean_off[f, m] - mean_off) <= max(1e-9, 4e-16 * abs(offset))


def test_an_outlier_leaves_a_sliding_window_without_a_trace():
    steps, dense = stream(4096)
    steps.metrics[100] = 1e7
    correlator = feed(Correlator(SPECS, 12, SMALL), steps, dense)
    view = correlator.view(window="last:512")
    table = correlator.table(window="last:512")
    low = 4096 - view.steps
    assert view.steps == 512
    for f in range(12):
        assert table.r[f, 1] == pytest.approx(
            exact_r(dense[low:, f], steps.metrics[low:, 1]), abs=1e-9
        )


def test_exponential_window_is_the_weighted_correlation():
    steps, dense = stream(3000, offset=1e6)
    config = replace(SMALL, pane_steps=1, sliding=())
    correlator = feed(Correlator(SPECS, 12, config), steps, dense)
    table = correlator.table(window="half:256")
    weight = 0.5 ** ((2999 - np.arange(3000)) / 256.0)
    for f in range(3):
        cov = np.cov(dense[:, f], steps.metrics[:, 0], aweights=weight)
        assert table.r[f, 0] == pytest.approx(cov[0, 1] / np.sqrt(cov[0, 0] * cov[1, 1]), abs=1e-9)
    assert table.n == pytest.approx(weight.sum())


def test_steered_rows_and_missing_hooks_are_left_out_and_counted():
    steps, dense = stream(600)
    steps.controller[::5] = Controller.INTERVENTION
    steps.flags[1::5] |= int(StepFlag.NO_ACTIVATION)
    steps.metrics[::5] += 1000.0
    correlator = feed(Correlator(SPECS, 12, SMALL), steps, dense)
    keep = np.ones(600, bool)
    keep[::5] = keep[1::5] = False
    assert correlator.counts.steered == 120
    assert correlator.counts.no_activation == 120
    profile = correlator.profile(0)
    assert profile.n == keep.sum()
    expected = np.corrcoef(dense[keep, 0], steps.metrics[keep, 0])[0, 1]
    assert profile.metric("m0").r == pytest.approx(expected, abs=1e-9)


def test_undefined_is_none_with_a_reason_never_a_number():
    n = 400
    dense = np.zeros((n, 4), np.float32)
    dense[:, 1] = 1.0
    dense[::3, 2] = 2.0
    metrics = np.column_stack(
        [np.full(n, 0.1), np.random.default_rng(0).normal(size=n), np.full(n, np.nan)]
    )
    correlator = feed(Correlator(SPECS, 4, SMALL), steps_of(metrics, episode_steps=1), dense)
    never, always, normal = (correlator.profile(f) for f in (0, 1, 2))
    assert never.density == 0.0
    assert never.metric("m1").r is None
    assert "never fired" in never.metric("m1").null
    assert always.metric("m1").r is None
    assert always.metric("m1").mean_off is None
    assert normal.metric("m0").r is None
    assert "did not vary" in normal.metric("m0").null
    assert normal.metric("m2").mean_on is None
    assert "never known" in normal.metric("m2").null
    assert normal.metric("m1").r is not None
    for profile in (never, always, normal):
        for item in profile.metrics:
            for name in ("r", "lo", "hi", "n_eff", "mean_on", "mean_off", "effect_size", "auroc"):
                value = getattr(item, name)
                assert value is None or np.isfinite(value)
                assert (value is None) == (name in item.reasons), (name, item)


def test_a_metric_that_appears_mid_run_is_summed_over_its_own_rows():
    steps, dense = stream(1500, offset=1e5)
    steps.metrics[:700, 1] = np.nan
    steps.metrics[900, 1] = np.inf
    correlator = feed(Correlator(SPECS, 12, SMALL), steps, dense)
    known = np.isfinite(steps.metrics[:, 1])
    table = correlator.table()
    for f in range(12):
        assert table.r[f, 1] == pytest.approx(
            exact_r(dense[known, f], steps.metrics[known, 1]), abs=1e-9
        )
        assert table.r[f, 0] == pytest.approx(exact_r(dense[:, f], steps.metrics[:, 0]), abs=1e-9)
    assert correlator.counts.metric_nan.tolist() == [0, 700, 0]
    assert correlator.counts.metric_inf.tolist() == [0, 1, 0]
    assert correlator.profile(0).metric("m1").n == 799


def test_rows_with_non_finite_activations_are_counted_and_left_out():
    steps, dense = stream(300)
    codes = codes_from_dense(dense)
    codes.value[5] = np.nan
    correlator = Correlator(SPECS, 12, SMALL)
    correlator.update(steps, codes)
    assert correlator.counts.bad_activations == 1
    assert correlator.profile(0).n == 299


def test_replayed_rows_are_ignored():
    steps, dense = stream(1000)
    once = feed(Correlator(SPECS, 12, SMALL), steps, dense)
    twice = feed(Correlator(SPECS, 12, SMALL), part(steps, 0, 600), dense[:600])
    feed(twice, part(steps, 300, 1000), dense[300:])
    assert twice.counts.duplicates == 300
    np.testing.assert_allclose(twice.table().r, once.table().r, atol=1e-12)
    np.testing.assert_array_equal(twice.table().bouts, once.table().bouts)


def test_merged_shards_are_the_whole():
    steps, dense = stream(3000, offset=1e6)
    whole = feed(Correlator(SPECS, 12, SMALL), steps, dense)
    config = replace(SMALL, grid=whole.grid)
    shards = []
    for env in range(4):
        own, seq = rows_of(steps, steps.env == env)
        rows = dense[steps.env == env]
        shard = Correlator(SPECS, 12, config)
        for low in range(0, len(own), 50):
            high = min(low + 50, len(own))
            shard.update(part(own, low, high), codes_from_dense(rows[low:high]), seq=seq[low:high])
        shards.append(shard)
    merged = shards[2].copy()
    for i in (0, 3, 1):
        merged.merge(shards[i])
    for window in whole.windows():
        a, b = whole.table(window=window), merged.table(window=window)
        np.testing.assert_allclose(a.r, b.r, atol=1e-9, err_msg=window)
        np.testing.assert_allclose(a.n_on, b.n_on, rtol=1e-12)
        np.testing.assert_allclose(a.lo, b.lo, atol=1e-7)
    a, b = whole.table(), merged.table()
    np.testing.assert_array_equal(a.auroc, b.auroc)
    np.testing.assert_array_equal(a.quantiles, b.quantiles)
    np.testing.assert_array_equal(a.bouts, b.bouts)
    for kind, items in whole.exemplars(0).items():
        assert [e.position for e in items] == [e.position for e in merged.exemplars(0)[kind]]


def test_state_restores_to_the_same_future():
    steps, dense = stream(2000)
    straight = feed(Correlator(SPECS, 12, SMALL), steps, dense)
    halfway = feed(Correlator(SPECS, 12, SMALL), part(steps, 0, 777), dense[:777])
    resumed = Correlator.restore(halfway.state(), SPECS, SMALL)
    feed(resumed, part(steps, 777, 2000), dense[777:])
    for window in straight.windows():
        a, b = straight.table(window=window), resumed.table(window=window)
        np.testing.assert_allclose(a.r, b.r, atol=1e-12)
        np.testing.assert_allclose(a.hi, b.hi, atol=1e-9)
    assert resumed.last_seq == straight.last_seq


def test_auroc_matches_the_rank_statistic_within_its_error():
    steps, dense = stream(3000)
    correlator = feed(Correlator(SPECS, 12, SMALL), steps, dense)
    table = correlator.table()
    assert correlator.deep.metrics.all[0].sum() == 3000
    for f in range(3):
        d = steps.metrics[:, 0]
        on = dense[:, f] > 0
        pairs = d[on][:, None] - d[~on][None]
        truth = ((pairs > 0) + 0.5 * (pairs == 0)).mean()
        assert abs(table.auroc[f, 0] - truth) <= table.auroc_error[f, 0] + 1e-12
        assert table.auroc_lo[f, 0] < truth < table.auroc_hi[f, 0]
    assert table.auroc_error.max() < 0.02


def test_binary_metrics_have_exact_auroc():
    rng = np.random.default_rng(3)
    dense = sparse_dense(rng, 2000, 4, 0.3)
    metrics = (rng.random((2000, 3)) < 0.5 + 0.3 * (dense[:, :1] > 0)).astype(float)
    correlator = feed(Correlator(SPECS, 4, SMALL), steps_of(metrics), dense)
    table = correlator.table()
    on = dense[:, 0] > 0
    truth = 0.5 + 0.5 * (metrics[on, 0].mean() - metrics[~on, 0].mean())
    assert table.auroc[0, 0] == pytest.approx(truth, abs=1e-12)
    assert table.auroc_error[0, 0] == 0.0


def test_slices_by_predicate_and_by_outcome():
    steps, dense = stream(2000)
    steps.flags[steps.flags > 0] = np.where(
        steps.episode[steps.flags > 0] % 2, int(StepFlag.TRUNCATED), int(StepFlag.TERMINATED)
    )
    config = replace(
        SMALL,
        slices=(
            SliceSpec("high", lambda columns: columns["m1"] > 0.5),
            SliceSpec("low", rowwise(lambda row: row["m1"] < -1)),
        ),
    )
    correlator = feed(Correlator(SPECS, 12, config), steps, dense)
    high = steps.metrics[:, 1] > 0.5
    assert correlator.profile(0, "slice:high").metric("m0").r == pytest.approx(
        np.corrcoef(dense[high, 0], steps.metrics[high, 0])[0, 1], abs=1e-9
    )
    assert correlator.profile(0, "slice:low").n == (steps.metrics[:, 1] < -1).sum()
    odd = steps.episode % 2 == 1
    truncated = correlator.profile(0, "slice:truncated")
    assert truncated.n == odd.sum()
    assert truncated.metric("m0").r == pytest.approx(
        np.corrcoef(dense[odd, 0], steps.metrics[odd, 0])[0, 1], abs=1e-9
    )


def test_exemplars_are_the_strongest_and_carry_their_context():
    steps, dense = stream(1000, envs=1)
    correlator = feed(Correlator(SPECS, 12, SMALL), steps, dense)
    top = correlator.exemplars(0)[ExemplarKind.TOP]
    expected = np.argsort(-dense[:, 0], kind="stable")[: len(top)]
    assert [item.position for item in top] == expected.tolist()
    first = top[0]
    row = first.position
    np.testing.assert_array_equal(first.metrics, steps.metrics[row])
    for offset in range(-4, 5):
        neighbour = row + offset
        same = 0 <= neighbour < 1000 and steps.episode[neighbour] == steps.episode[row]
        got = first.context[offset + 4]
        if same:
            np.testing.assert_array_equal(got, steps.metrics[neighbour])
        else:
            assert np.isnan(got).all()
    for item in correlator.exemplars(0)[ExemplarKind.NEAR_MISS]:
        assert dense[item.position, 0] == 0


def test_wrong_shapes_are_refused_with_a_sentence():
    steps, dense = stream(10)
    correlator = Correlator(SPECS, 12, SMALL)
    with pytest.raises(UserError, match="do not fit"):
        correlator.update(steps, codes_from_dense(dense[:5]))
    with pytest.raises(UserError, match="no window"):
        correlator.table(window="yesterday")
    with pytest.raises(UserError, match="no metric"):
        correlator.top("nope")
    with pytest.raises(UserError, match="unique"):
        Correlator((MetricSpec("a"), MetricSpec("a")), 4, SMALL)


def test_held_bytes_are_what_the_allocator_says():
    steps, dense = stream(4000)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    correlator = feed(Correlator(SPECS, 12, SMALL), steps, dense)
    correlator.finish()
    allocated = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert correlator.nbytes == pytest.approx(allocated, rel=0.1)

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlatent_live.statistics.sketches import ActivationSketch, Grid, auroc_from_counts


@given(
    st.lists(st.floats(1e-5, 1e5), min_size=1, max_size=200),
    st.sampled_from([0.01, 0.02, 0.05]),
)
def test_quantiles_keep_their_relative_error(values, error):
    sketch = ActivationSketch(1, error)
    np.add.at(sketch.counts[0], sketch.bins_of(np.array(values)), 1)
    q = (0.05, 0.5, 0.95)
    got = sketch.quantiles(np.array([0]), q)[0]
    ordered = np.sort(values)
    for fraction, value in zip(q, got, strict=True):
        rank = fraction * (len(values) - 1)
        low, high = ordered[int(np.floor(rank))], ordered[int(np.ceil(rank))]
        assert low * (1 - error) * (1 - 1e-9) <= value <= high * (1 + error) * (1 + 1e-9)


def test_never_on_has_no_quantiles():
    assert np.isnan(ActivationSketch(2, 0.02).quantiles(np.array([1]), (0.5,))).all()


@given(st.integers(0, 2**32 - 1), st.sampled_from([4, 16, 64]), st.booleans())
def test_auroc_error_bounds_the_truth(seed, bins, atoms):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 4, 300).astype(float) if atoms else rng.normal(size=300) + 1e7
    on = rng.random(300) < 0.3
    on[0], on[1] = True, False
    grid = Grid.learn(rng.permutation(x)[:100, None], bins)
    where = grid.bins_of(x[:, None])[:, 0]
    counts_on = np.bincount(where[on], minlength=bins).astype(float)
    counts_off = np.bincount(where[~on], minlength=bins).astype(float)
    value, error = auroc_from_counts(counts_on, counts_off, grid.exact(bins)[0])
    difference = x[on][:, None] - x[~on][None]
    truth = ((difference > 0) + 0.5 * (difference == 0)).mean()
    assert abs(value - truth) <= error + 1e-12


def test_atoms_get_bins_of_their_own():
    x = np.array([0.0] * 50 + [1.0] * 50)[:, None]
    grid = Grid.learn(x, 16)
    bins = grid.bins_of(np.array([[0.0], [1.0], [0.5], [np.nan]]))[:, 0]
    assert bins[0] != bins[1] != bins[2]
    assert bins[3] == -1
    assert grid.exact(16)[0, bins[0]]
    assert grid.exact(16)[0, bins[1]]
    again = Grid.from_arrays(grid.arrays())
    assert again.same(grid)
    assert grid.ranks_of(np.array([[-1]]))[0, 0] == pytest.approx(0.5)


def test_a_histogram_keeps_every_count_and_the_shape():
    values = np.random.default_rng(3).exponential(2.0, 5000)
    sketch = ActivationSketch(1, 0.01)
    np.add.at(sketch.counts[0], sketch.bins_of(values), 1)
    edges, counts = sketch.histogram(0, 12)
    assert counts.sum() == pytest.approx(5000)
    assert edges[0] == 0.0
    assert edges[-1] == pytest.approx(values.max(), rel=0.03)
    exact, _ = np.histogram(values, edges)
    assert np.abs(counts - exact).max() <= 0.02 * 5000
    assert [len(one) for one in ActivationSketch(1, 0.01).histogram(0, 12)] == [0, 0]

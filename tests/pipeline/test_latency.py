import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlatent_live.pipeline.latency import BINS_PER_DECADE, LatencyHistogram

BIN_WIDTH = 10 ** (1 / BINS_PER_DECADE)


def test_empty_has_no_percentile():
    assert LatencyHistogram().percentile(50) is None


@given(st.lists(st.floats(0.01, 1e5), min_size=1, max_size=200), st.sampled_from([50, 90, 99, 100]))
def test_percentile_is_right_to_one_bin(values, q):
    histogram = LatencyHistogram()
    histogram.observe(np.array(values))
    exact = float(np.percentile(values, q, method="inverted_cdf"))
    found = histogram.percentile(q)
    assert found is not None
    assert exact / BIN_WIDTH <= found <= exact * BIN_WIDTH


def test_merge_equals_observing_both():
    a, b, both = LatencyHistogram(), LatencyHistogram(), LatencyHistogram()
    first, second = np.array([0.5, 3.0]), np.array([70.0])
    a.observe(first)
    b.observe(second)
    both.observe(np.concatenate([first, second]))
    a.merge(b)
    assert (a.counts == both.counts).all()
    assert a.sum_ms == pytest.approx(both.sum_ms)


def test_negative_and_huge_latencies_are_counted_in_the_end_bins():
    histogram = LatencyHistogram()
    histogram.observe(np.array([-5.0, 1e12]))
    assert histogram.n == 2
    assert histogram.counts[0] == 1
    assert histogram.counts[-1] == 1


def test_cumulative_counts_for_prometheus():
    histogram = LatencyHistogram()
    histogram.observe(np.array([0.5, 5.0, 50.0]))
    assert histogram.cumulative((1.0, 10.0, 100.0)) == [1, 2, 3]

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlatent_live.errors import UserError
from interlatent_live.probes.targets import Target, label, parse_target
from interlatent_live.stream import StepFlag


def test_targets_are_read_and_written_back():
    for text in ("terminated within 1 s", "fall_margin < 0.05 within 0.5 s", "speed >= -1.5"):
        assert str(parse_target(text)) == text
    assert parse_target("a.b > 1e-3 within .25s") == Target("a.b", ">", 0.001, 0.25)


@pytest.mark.parametrize("text", ["terminated", "speed", "speed > fast", "x > 1 within", "1 > x"])
def test_what_is_no_target_is_refused(text):
    with pytest.raises(UserError, match=r"no target|needs a horizon"):
        parse_target(text)


def rows(lengths, ended):
    episode = np.repeat(np.arange(len(lengths)), lengths)
    t = np.concatenate([np.arange(n) for n in lengths])
    flags = np.zeros(len(t), np.uint8)
    last = np.cumsum(lengths) - 1
    flags[last] = [StepFlag.TERMINATED if end else StepFlag.TRUNCATED for end in ended]
    return episode, t, flags


@given(
    st.lists(st.tuples(st.integers(1, 12), st.booleans()), min_size=1, max_size=6),
    st.integers(1, 6),
)
def test_termination_ahead_against_a_loop(episodes, horizon):
    lengths, ended = [n for n, _ in episodes], [end for _, end in episodes]
    episode, t, flags = rows(lengths, ended)
    found = label(
        Target("terminated", within_s=horizon * 0.02),
        names=[],
        metrics=np.zeros((len(t), 0)),
        flags=flags,
        episode=episode,
        t=t,
        step_seconds=0.02,
    )
    for i in range(len(t)):
        length, end = lengths[episode[i]], ended[episode[i]]
        left = length - t[i]
        if end:
            assert found.known[i]
            assert found.positive[i] == (left <= horizon)
        else:
            # Cut off: only known where the horizon fits into what was seen.
            assert not found.positive[i]
            assert found.known[i] == (left >= horizon)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=15), st.integers(0, 4))
def test_a_metric_ahead_against_a_loop(values, horizon):
    metrics = np.array(values)[:, None]
    episode, t, flags = rows([len(values)], [False])
    found = label(
        Target("x", ">", 0.5, horizon * 0.1),
        names=["x"],
        metrics=metrics,
        flags=flags,
        episode=episode,
        t=t,
        step_seconds=0.1,
    )
    for i in range(len(values)):
        seen = metrics[i : i + horizon + 1, 0]
        assert found.positive[i] == bool((seen > 0.5).any())
        assert found.known[i] == (found.positive[i] or i + horizon < len(values))


def test_a_gap_in_the_rows_hides_the_future_and_an_absent_metric_has_no_label():
    found = label(
        Target("x", ">", 0.0, 0.2),
        names=["x"],
        metrics=np.array([[0.0], [np.nan], [0.0], [1.0]]),
        flags=np.zeros(4, np.uint8),
        episode=np.zeros(4, int),
        t=np.array([0, 1, 5, 6]),
        step_seconds=0.1,
    )
    assert found.known.tolist() == [False, False, True, True]
    assert found.positive.tolist() == [False, False, True, True]


def test_unknown_metrics_and_impossible_horizons_are_refused():
    fields: dict[str, Any] = {
        "metrics": np.zeros((1, 1)),
        "flags": np.zeros(1, np.uint8),
        "episode": np.zeros(1, int),
        "t": np.zeros(1, int),
        "step_seconds": 0.1,
    }
    with pytest.raises(UserError, match="no metric 'y'; it has x"):
        label(Target("y", ">", 0.0), names=["x"], **fields)
    with pytest.raises(UserError, match="under one step"):
        label(Target("x", ">", 0.0, 0.01), names=["x"], **fields)

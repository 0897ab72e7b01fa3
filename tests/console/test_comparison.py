"""Before and after an intervention: which rows count, pairing, honest intervals, too little."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from interlatent_live.console.comparison import compare
from interlatent_live.console.history import BLOCK_STEPS, MetricName, Span, StepHistory
from interlatent_live.control.commands import Operation
from interlatent_live.control.machine import Fate
from interlatent_live.control.wire import AgentEvent, Told
from interlatent_live.stream import Controller, FeatureBatch, Steps

NAMES = (MetricName("tilt", "rad", "state"), MetricName("push", "N", "action"))


def batch(first, values, *, copies=1, episode=None, controller=0, t=0):
    """Rows in the order of a vectorised agent; ``values`` [rows, M]."""
    n = len(values)
    steps = n // copies
    return FeatureBatch(
        "run", "boot",
        Steps(
            first_seq=first,
            env=np.tile(np.arange(copies), steps).astype(np.uint16),
            episode=np.zeros(n, np.uint32) if episode is None else episode.astype(np.uint32),
            t=np.full(n, t, np.uint32),
            time_ns=np.zeros(n, np.int64),
            controller=np.full(n, controller, np.uint8),
            flags=np.zeros(n, np.uint8),
            metrics=np.asarray(values, np.float64),
        ),
        {}, {},
    )  # fmt: skip


def told(fate, row, command_id="c", operation=Operation.INTERVENE):
    event = AgentEvent(
        number=1, version=1, row=row, command_id=command_id, operation=operation, fate=fate,
        actor="ada", detail="", time_ns=0,
    )  # fmt: skip
    return Told(agent="walker", boot_id="boot", event=event)


def test_a_span_is_what_the_agent_said():
    history = StepHistory()
    history.told(told(Fate.APPLIED, 5, operation=Operation.STOP))
    assert history.span("c") is None
    history.told(told(Fate.APPLIED, 100))
    assert history.span("c") == Span("boot", "walker", 100)
    assert history.wanted
    history.told(told(Fate.EXPIRED, 400))
    assert history.span("c") == Span("boot", "walker", 100, 400)
    assert not history.wanted


def test_blocks_hold_one_copy_one_episode_and_add_up():
    history = StepHistory()
    random = np.random.default_rng(0)
    copies, rows = 3, 3 * 1000
    values = random.normal(size=(rows, 2))
    values[::7, 1] = np.nan
    episode = np.repeat(np.arange(1000) // 90, copies)
    for start in range(0, rows, 30):
        part = slice(start, start + 30)
        history.take(batch(start, values[part], copies=copies, episode=episode[part]))
    blocks = history.blocks("boot")
    assert all(one.steps <= BLOCK_STEPS for one in blocks)
    for one in blocks:
        own = np.arange(one.first, one.last + 1, copies)
        assert {row % copies for row in own} == {one.env}
        assert set(episode[own]) == {one.episode}
        assert one.sums == pytest.approx(np.nansum(values[own], axis=0))
        assert one.counts.tolist() == np.isfinite(values[own]).sum(axis=0).tolist()
    # Only what is still being filled is missing: at most a block of each copy.
    assert rows - sum(one.steps for one in blocks) <= copies * BLOCK_STEPS


def test_memory_is_bounded():
    history = StepHistory(most_bytes=20_000)
    for start in range(0, 100_000, 1000):
        history.take(batch(start, np.zeros((1000, 2))))
    assert 0 < len(history.blocks("boot")) < 60


def test_names_come_from_the_agents_document():
    history = StepHistory()
    assert history.names("boot") == ()

    metrics = [{"name": "tilt", "unit": "rad", "role": "state"}]
    document: Any = SimpleNamespace(agents=[SimpleNamespace(boot_id="boot", metrics=metrics)])
    history.describe(document)
    assert history.names("boot") == (NAMES[0],)


def run(values, *, copies, span, controller=None, episode=None, step=None):
    history = StepHistory()
    rows = len(values)
    which = np.zeros(rows, int) if controller is None else controller
    episode = np.zeros(rows, int) if episode is None else episode
    step = step or copies * 8
    for start in range(0, rows, step):
        part = slice(start, min(rows, start + step))
        history.take(
            batch(
                start, values[part], copies=copies, episode=episode[part],
                controller=int(which[part].max()),
            )
        )  # fmt: skip
    return compare("c", span, history.blocks("boot"), NAMES)


def test_eight_copies_are_paired():
    random = np.random.default_rng(1)
    rows = 8 * 1600
    own = np.tile(random.normal(scale=5.0, size=8), 1600)  # copies differ far more than the effect
    values = np.stack([own + random.normal(size=rows), random.normal(size=rows)], axis=1)
    values[rows // 2 :, 0] += 0.5
    found = run(values, copies=8, span=Span("boot", "walker", rows // 2))
    tilt, push = found.metrics
    assert tilt.paired
    assert push.paired
    assert tilt.before.units == 8
    assert tilt.low < 0.5 < tilt.high
    assert tilt.low > 0.2
    assert push.low < 0 < push.high
    assert "each copy against itself" in found.note
    assert "not for all 2 together" in found.note


def test_one_copy_with_episodes_resamples_episodes():
    random = np.random.default_rng(2)
    rows = 8000
    episode = np.arange(rows) // 200
    level = random.normal(scale=1.0, size=40)[episode]
    values = np.stack([level + random.normal(size=rows), level], axis=1)
    found = run(values, copies=1, span=Span("boot", "walker", rows // 2), episode=episode)
    tilt = found.metrics[0]
    assert not tilt.paired
    assert 8 <= tilt.before.units <= 21
    # Forty levels of spread 1: nobody could know it better than this.
    assert tilt.high - tilt.low > 0.6
    assert "block bootstrap" in found.note


def test_a_slow_metric_says_that_there_is_too_little():
    rows = 8000
    slow = np.sin(np.arange(rows) / 2000)
    values = np.stack([slow, np.random.default_rng(3).normal(size=rows)], axis=1)
    found = run(values, copies=1, span=Span("boot", "walker", rows // 2))
    tilt = found.metrics[0]
    assert tilt.low is None
    assert tilt.high is None
    assert "too little" in tilt.reason
    assert tilt.difference is not None


def test_held_and_human_steps_and_other_interventions_do_not_count():
    rows = 8 * 1600
    values = np.zeros((rows, 2))
    controller = np.zeros(rows, int)
    spoilt = slice(rows // 4, rows // 4 + 8 * 64)
    held = slice(rows * 3 // 4, rows * 3 // 4 + 8 * 64)
    controller[spoilt], values[spoilt] = int(Controller.INTERVENTION), 100.0
    controller[held], values[held] = int(Controller.HOLD), 100.0
    found = run(values, copies=8, span=Span("boot", "walker", rows // 2), controller=controller)
    assert [one.before.mean for one in found.metrics] == [0.0, 0.0]
    assert [one.after.mean for one in found.metrics] == [0.0, 0.0]


def test_nothing_kept_is_said():
    found = compare("c", Span("boot", "walker", 10), [], NAMES)
    assert "too few steps were kept" in found.reason
    assert found.metrics[0].difference is None
    found = compare("c", Span("boot", "walker", 10), [], ())
    assert found.metrics == ()


def test_the_interval_of_an_autocorrelated_metric_misses_no_more_than_it_says():
    """Without an effect, about 5 % of runs may be called one; by the step it would be 75 %."""
    random = np.random.default_rng(4)
    phi, runs, rows, wrong, told_ = 0.95, 60, 24_000, 0, 0
    for _ in range(runs):
        noise = random.normal(size=rows)
        x = np.empty(rows)
        x[0] = noise[0]
        for i in range(1, rows):
            x[i] = phi * x[i - 1] + noise[i]
        values = np.stack([x, noise], axis=1)
        span = Span("boot", "walker", rows // 2)
        tilt = run(values, copies=1, span=span, step=500).metrics[0]
        if tilt.low is not None:
            told_ += 1
            wrong += not tilt.low <= 0 <= tilt.high
    assert told_ > runs / 2
    # Three standard errors of a binomial above 5 %.
    assert wrong / told_ <= 0.05 + 3 * (0.05 * 0.95 / told_) ** 0.5

"""Messages that wait together are one block, and the statistics do not notice."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interlatent_live.pipeline.blocks import MOST_ROWS, Blocks
from interlatent_live.pipeline.correlator import CorrelatorCore
from interlatent_live.statistics.config import CorrelatorConfig
from interlatent_live.statistics.watching import WatchConfig
from interlatent_live.wire.slices import slice_features
from tests.support.planted_stream import HOOK, episodes, manifest

WHOLE = list(episodes(30, 50))
WATCH = WatchConfig(reference_panes=8, rate=0.2, block_steps=32, conformal=("novelty",))


def messages(sizes):
    """The stream cut anew, message by message."""
    at, sizes = 0, list(sizes)
    for batch in WHOLE:
        while at < 50:
            size = min(sizes[0], 50 - at)
            sizes.append(sizes.pop(0))
            yield slice_features(batch, at, size)
            at += size
        at = 0


def core_of(batches):
    core = CorrelatorCore(CorrelatorConfig(pane_steps=64), clock=lambda: 1, watch=WATCH)
    core.hello(manifest())
    for batch in batches:
        core.features(batch)
    return core.find("run", HOOK)


REFERENCE = core_of(WHOLE)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=5),
    st.lists(st.integers(1, 60), min_size=1, max_size=5),
)
def test_the_statistics_are_those_of_single_messages(sizes, turns):
    blocks, taken, waiting, count, turns = Blocks(), [], 0, 0, list(turns)
    for message in messages(sizes):
        taken += blocks.add(message)
        count, waiting = count + 1, waiting + 1
        if waiting >= turns[0]:
            taken += blocks.take()
            turns.append(turns.pop(0))
            waiting = 0
    taken += blocks.take()
    assert sum(block.messages for block in taken) == count
    stream = core_of(block.batch for block in taken)
    ours, theirs = stream.correlator.table(), REFERENCE.correlator.table()
    np.testing.assert_allclose(ours.r, theirs.r, atol=1e-9)
    for name in ("n_on", "episodes", "bouts", "quantiles", "auroc"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    stream.watch.settle()
    REFERENCE.watch.settle()
    assert [one.state() for one in stream.watch.scores] == [
        one.state() for one in REFERENCE.watch.scores
    ]
    assert set(stream.watch.alarms) == set(REFERENCE.watch.alarms)


@pytest.mark.parametrize(
    "change",
    [
        lambda batch: slice_features(batch, 1, 49),  # a row is missing between them
        lambda batch: dataclasses.replace(batch, transcoders={HOOK: "sha256:another"}),
        lambda batch: dataclasses.replace(batch, run_id="another"),
    ],
)
def test_what_does_not_follow_is_another_block(change):
    blocks = Blocks()
    assert blocks.add(WHOLE[0]) == []
    (block,) = blocks.add(change(WHOLE[1]))
    assert block.batch is WHOLE[0]
    (rest,) = blocks.take()
    assert rest.messages == 1


def test_boots_are_apart_and_a_block_is_bounded():
    blocks = Blocks()
    for batch in WHOLE[:3]:
        assert blocks.add(batch) == []
    assert blocks.add(dataclasses.replace(WHOLE[0], boot_id="other")) == []
    (block,) = blocks.take("boot")
    assert (len(block.batch.steps), block.messages) == (150, 3)
    assert len(list(blocks.take())) == 1
    assert list(blocks.take()) == []
    many = list(episodes(MOST_ROWS // 50 + 2, 50))
    found = [one for batch in many for one in blocks.add(batch)]
    assert [len(one.batch.steps) for one in found] == [MOST_ROWS // 50 * 50]

"""Where the next row of each copy stands: what a sampled forward is remembered by."""

from __future__ import annotations

import numpy as np

from interlatent_live.agent.episodes import EpisodeClock
from interlatent_live.agent.options import Autoreset


def test_a_single_copy_stands_in_plain_integers():
    clock = EpisodeClock(1, Autoreset.DISABLED)
    clock.advance(False, False)
    assert clock.place == (0, 1)
    clock.advance(True, False)
    assert clock.place == (1, 0)


def test_a_call_that_resets_a_copy_is_no_step_of_it():
    clock = EpisodeClock(2, Autoreset.NEXT_STEP)
    nobody = np.zeros(2, bool)
    clock.advance(np.array([True, False]), nobody)
    episode, t = clock.place
    assert (episode.tolist(), t.tolist()) == ([1, 0], [-1, 1])
    clock.advance(nobody, nobody)
    episode, t = clock.place
    assert (episode.tolist(), t.tolist()) == ([1, 0], [0, 2])
    # What was handed out stays as it was.
    clock.advance(nobody, np.array([False, True]))
    assert episode.tolist() == [1, 0]

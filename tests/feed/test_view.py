import dataclasses
import io

import msgspec
import numpy as np
import pytest
from rich.console import Console

from interlatent_live.feed.documents import HookPointStatus, NarrationTruth
from interlatent_live.feed.state import FeedState
from interlatent_live.feed.view import VERDICT_STYLE, clean, render, room_for
from tests.support.feeds import (
    HASH,
    agents_document,
    claim,
    claims_document,
    feature_batch,
    narration_document,
)


def shown(state, width=80):
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=False, color_system=None).print(render(state))
    return out.getvalue()


def full_state():
    state = FeedState()
    state.on_document(agents_document(dropped_declared={"overrun": 3}, gaps_undeclared=1))
    state.on_document(claims_document([claim(), claim(9, "weak", label="cart is left")]))
    state.on_document(narration_document())
    state.on_features(feature_batch(), received_ns=3_000_000)
    return state


def test_a_terminal_of_24_lines_holds_all_of_it():
    state = full_state()
    document = agents_document()
    names = [f"metric {number}" for number in range(20)]
    many = [{"name": n, "unit": "m", "role": "state", "description": ""} for n in names]
    state.on_document(agents_document(metrics=many))
    state.on_document(claims_document([claim(index) for index in range(30)]))
    for number in range(9):
        state.on_document(narration_document("The cart is far from home. " * 8, env=number))
    batch = feature_batch(active=tuple((index, 1.0) for index in range(12)))
    wide = dataclasses.replace(batch.steps, metrics=np.full((2, 20), 0.123))
    state.on_features(dataclasses.replace(batch, steps=wide), received_ns=1)
    out = io.StringIO()
    Console(file=out, width=80, color_system=None).print(render(state, room=room_for(24)))
    lines = out.getvalue().splitlines()
    assert len(lines) <= 24
    assert document.agents[0].agent in lines[1]


def test_narration_stands_under_how_true_it_has_been():
    state = full_state()
    assert "cited predicates" not in shown(state)
    truth = NarrationTruth(cited=2, true=2, still=1, rate=0.985, still_rate=0.75, of=132)
    state.on_document(msgspec.structs.replace(narration_document(), truth=truth))
    assert "98% of 132 cited predicates held, 75% still did when told" in shown(state, width=100)


def test_an_empty_feed_says_that_it_waits():
    assert "waiting for an agent" in shown(FeedState())


def test_everything_an_operator_needs_is_on_one_80_column_screen():
    text = shown(full_state())
    assert max(len(line) for line in text.splitlines()) <= 80
    for expected in (
        "cartpole-demo",
        "CartPole-v1 × 8",
        "3 declared, 1 undeclared, 0 missed",
        "step→feature p50 4.2 p99 11.0 ms",
        "FVU 0.0007 (affine 0.0018)",
        "pole angle 0.05 rad",
        "hidden.1/3",
        "pole leans right",
        "✓ verified",
        "~ weak",
        "1 verified, 1 weak",
        "The pole leans right.",
    ):
        assert expected in text


@pytest.mark.parametrize("verdict", list(VERDICT_STYLE))
def test_every_verdict_is_said_in_words(verdict):
    state = full_state()
    state.on_document(claims_document([claim(verdict=verdict)]))
    assert verdict in shown(state)


def test_hostile_names_are_shown_as_text():
    state = full_state()
    hostile = "[bold red]\x1b[2J\u202e pwned\n[/]"
    state.on_document(claims_document([claim(label=hostile)]))
    state.on_document(agents_document(agent=hostile))
    text = shown(state)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "[bold red]" in text


def test_clean_bounds_and_flattens():
    assert clean("a\n b\tc") == "a b c"
    assert clean("x" * 300, 10) == "x" * 9 + "…"


def test_a_feature_of_another_transcoder_has_no_claim():
    state = full_state()
    other = claim(address=f"hidden.1/3@{HASH[:-1]}0")
    state.on_document(claims_document([other]))
    assert "no claim yet" in shown(state)


def test_a_probe_is_shown_by_its_name_with_and_without_a_claim():
    hook = HookPointStatus(
        "hidden.1", HASH, 256, 0.0007, 0.0018, 1000, {"3": "probe: terminated within 1 s"}
    )
    state = full_state()
    state.on_document(agents_document(hook_points=[hook]))
    line = next(line for line in shown(state).splitlines() if "hidden.1/3" in line)
    assert "probe: terminated within 1 s  ✓ pole" in line
    state.on_document(claims_document([]))
    line = next(line for line in shown(state).splitlines() if "hidden.1/3" in line)
    assert "probe: terminated within 1 s" in line
    assert "no claim yet" not in line

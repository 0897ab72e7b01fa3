"""Interventions in a real policy: what they change, what they leave alone, and what frames show."""

import numpy as np
import pytest
import torch
from torch import nn

from interlatent_live.agent.attach import attach
from interlatent_live.agent.control import MISSING_STEPS, ControlOptions, Published
from interlatent_live.control.machine import NEVER, Decision, Mode
from interlatent_live.errors import MismatchError, UserError
from interlatent_live.interventions.values import FeatureCondition, Kind, Plan
from interlatent_live.stream import Controller
from tests.support.control_kit import (
    HOOK,
    METRICS,
    Loop,
    TwoLayers,
    controlled,
    loaded,
    steer,
)

torch.set_num_threads(1)


@pytest.fixture
def policy():
    return TwoLayers()


@pytest.fixture
def tap(policy, tmp_path):
    with controlled(policy, tmp_path) as made:
        yield made


def publish(tap, *changes, dry=False, until_ns=NEVER, bound=5.0):
    plan = Plan(HOOK, changes[0].transcoder_hash, tuple(one.intervention for one in changes), bound)
    plans, shadows = ((), (("c", plan),)) if dry else ((plan,), ())
    decision = Decision(1, Mode.RUNNING, plans, shadows, until_ns, NEVER, NEVER)
    tap.control.published = Published.of(decision)


def plain(policy, obs):
    with torch.no_grad():
        x = torch.from_numpy(obs)
        return policy.first.forward(x), x


def expected(policy, obs, change_of):
    """The action with ``change_of(features, W_dec)`` [n, 4] added to the first layer's output."""
    y, x = plain(policy, obs)
    transcoder = loaded(policy).transcoder
    y = y + change_of(transcoder.encode(x), transcoder.W_dec)
    with torch.no_grad():
        return policy.second.forward(torch.tanh(y)).numpy()


@pytest.mark.parametrize(
    ("kind", "value", "change_of"),
    [
        (Kind.STEER, 0.7, lambda f, W: 0.7 * W[3].expand(len(f), -1)),
        (Kind.CLAMP, 2.0, lambda f, W: (2.0 - f[:, 3:4]) * W[3]),
        (Kind.SCALE, 3.0, lambda f, W: 2.0 * f[:, 3:4] * W[3]),
        (Kind.ABLATE, 0.0, lambda f, W: -f[:, 3:4] * W[3]),
    ],
)
@pytest.mark.parametrize("copies", [1, 3])
def test_an_intervention_adds_its_delta_and_no_reconstruction(
    policy, tmp_path, kind, value, change_of, copies
):
    with controlled(policy, tmp_path, env_count=copies) as tap:
        loop = Loop(policy, tap, copies)
        publish(tap, steer(3, kind, value, policy=policy), bound=1e6)
        for _ in range(5):
            meant, taken = loop.step()
            assert taken is meant
            np.testing.assert_allclose(meant, expected(policy, loop.obs, change_of), atol=1e-5)


def test_frames_show_what_the_policy_made_and_say_that_it_was_steered(policy, tap):
    loop = Loop(policy, tap)
    loop.step()
    publish(tap, steer(3, policy=policy))
    loop.step()
    obs = loop.obs
    tap.control.published = Published.of(Decision(2, Mode.RUNNING, (), (), NEVER, NEVER, NEVER))
    loop.step()
    batch = tap.take()
    assert list(batch.steps.controller) == [
        Controller.POLICY, Controller.INTERVENTION, Controller.POLICY,
    ]  # fmt: skip
    np.testing.assert_array_equal(batch.activations[HOOK].x[1], obs[0])


def test_with_nothing_in_force_every_action_is_the_policys_to_the_bit(policy, tap):
    twin = TwoLayers()
    loop = Loop(policy, tap)
    never_on = steer(3, policy=policy, condition=FeatureCondition(2, 1e9))
    for changes in ((), (never_on,)):
        if changes:
            publish(tap, *changes)
        for _ in range(20):
            meant, _ = loop.step()
            with torch.no_grad():
                assert (meant == twin(torch.from_numpy(loop.obs)).numpy()).all()
    assert set(tap.take().steps.controller) == {Controller.POLICY}


def test_the_sum_is_bounded_in_the_agent(policy, tap):
    loop = Loop(policy, tap)
    publish(tap, *(steer(i, value=50.0, policy=policy) for i in range(3)), bound=0.25)
    loop.step()
    effect = tap.control.effects[HOOK, ""]
    assert effect.rows == 1
    assert effect.largest_norm == pytest.approx(0.25, rel=1e-5)


def test_a_plan_ends_by_the_clock_although_nobody_publishes(policy, tap):
    twin, loop = TwoLayers(), Loop(policy, tap)
    publish(tap, steer(3, policy=policy), until_ns=1)
    meant, _ = loop.step()
    with torch.no_grad():
        assert (meant == twin(torch.from_numpy(loop.obs)).numpy()).all()


def test_a_dry_run_says_what_would_have_been_and_does_nothing(policy, tap):
    twin, loop = TwoLayers(), Loop(policy, tap)
    publish(tap, steer(3, value=2.0, policy=policy), dry=True)
    for _ in range(4):
        meant, _ = loop.step()
        with torch.no_grad():
            assert (meant == twin(torch.from_numpy(loop.obs)).numpy()).all()
    effect = tap.control.effects[HOOK, "c"]
    norm = 2.0 * float(loaded(policy).transcoder.W_dec[3].norm())
    assert (effect.rows, effect.largest_norm) == (4, pytest.approx(norm, rel=1e-5))
    assert set(tap.take().steps.controller) == {Controller.POLICY}


def test_a_condition_on_metrics_is_judged_on_the_row_before(policy, tap):
    loop = Loop(policy, tap)
    publish(tap, steer(3, policy=policy, predicate="tilt > 0.5 and delta(tilt) > 0"))
    for tilt in (0.9, 0.6, 0.7, 0.8, 0.1):
        loop.step((0.0, tilt))
    steered = np.flatnonzero(tap.take().steps.controller == Controller.INTERVENTION)
    assert list(steered) == [3, 4]


def test_forwards_that_do_not_act_are_left_alone(policy, tap):
    loop = Loop(policy, tap)
    loop.step()
    publish(tap, steer(3, policy=policy))
    twin = TwoLayers()
    rows = torch.randn(7, 2)
    with torch.no_grad():
        assert (policy(rows) == twin(rows)).all(), "another number of rows than copies"
    assert (policy(rows[:1]) == twin(rows[:1])).all(), "a forward with gradients learns"


def test_a_policy_compiled_later_is_noticed_and_the_intervention_given_up(policy, tap):
    loop = Loop(policy, tap)
    # What a compiled region does to hooks inside of it: they do not run.
    loop.forward = lambda x: policy.second.forward(torch.tanh(policy.first.forward(x)))
    publish(tap, steer(3, policy=policy))
    for _ in range(MISSING_STEPS):
        loop.step()
    (report,) = [one for one in tap.control.reports if one.trouble]
    assert "did not run as a module of its own" in report.trouble
    assert not [one for one in tap.control.reports if not one.trouble], "nothing took effect"


def test_a_compiled_module_is_steered_from_outside(tmp_path):
    policy, twin = TwoLayers(), TwoLayers()
    setattr(policy, HOOK, torch.compile(policy.first, backend="eager"))
    with controlled(policy, tmp_path) as tap:
        loop = Loop(policy, tap)
        publish(tap, steer(3, policy=twin), bound=1e6)
        meant, _ = loop.step()
        y, _ = plain(twin, loop.obs)
        with torch.no_grad():
            wanted = twin.second(torch.tanh(y + loaded(twin).transcoder.W_dec[3])).numpy()
        np.testing.assert_allclose(meant, wanted, atol=1e-5)


def test_a_module_compiled_in_place_is_steered_or_given_up_with_the_reason(tmp_path):
    policy, twin = TwoLayers(), TwoLayers()
    with controlled(policy, tmp_path) as tap:
        policy.first.compile(backend="eager")
        loop = Loop(policy, tap)
        publish(tap, steer(3, policy=twin), bound=1e6)
        for _ in range(MISSING_STEPS):
            meant, _ = loop.step()
        with torch.no_grad():
            steered = not np.allclose(meant, twin(torch.from_numpy(loop.obs)).numpy(), atol=1e-4)
        troubles = [one.trouble for one in tap.control.reports if one.trouble]
        assert steered != bool(troubles)


def test_inside_a_compiled_policy_it_is_refused(tmp_path):
    policy = torch.compile(TwoLayers(), backend="eager")
    with pytest.raises(UserError, match=r"torch\.compile"):
        attach(policy, ["_orig_mod.first"], METRICS, endpoint=None)


def test_recurrent_states_strangers_and_other_policies_are_refused(policy, tmp_path):
    with pytest.raises(UserError, match="not among the hook points"):
        controlled(
            policy, tmp_path, transcoders={"second": loaded(policy, "second")},
            max_norm={"second": 1.0},
        )  # fmt: skip
    with pytest.raises(MismatchError):
        controlled(policy, tmp_path, transcoders={HOOK: loaded(TwoLayers(seed=5))})
    with pytest.raises(UserError, match="needs a bound"):
        controlled(policy, tmp_path, max_norm={})

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(2, 4)
            self.memory = nn.LSTM(4, 4)

        def forward(self, obs):
            return self.memory(self.first(obs))[0]

    memory = Recurrent()
    given = loaded(memory)
    known = type(given)(
        given.transcoder,
        type(given.provenance)(policy_hash=given.provenance.policy_hash, hook_point="memory"),
        None,
    )
    options = ControlOptions(
        endpoint=None, transcoders={"memory": known}, max_norm={"memory": 1.0}, state=tmp_path,
    )  # fmt: skip
    with pytest.raises(UserError, match="recurrent state"):
        attach(memory, ["memory"], [], endpoint=None, control=options)

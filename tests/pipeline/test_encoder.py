from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interlatent_live.encoding.micro_batching import BatchLimits
from interlatent_live.errors import MismatchError, UserError
from interlatent_live.pipeline.encoder import OVERLOAD, RUNS_SHOWN, EncoderCore
from interlatent_live.stream import (
    Activations,
    HookPointSpec,
    Manifest,
    MetricSpec,
    SparseCodes,
    StepBatch,
    StepFlag,
    steps_without_columns,
)

POLICY = "sha256:" + "a" * 64
SECOND_NS = 1_000_000_000


@dataclass(frozen=True)
class FakeTranscoder:
    identity: str
    n_features: int = 4
    d_in: int = 2
    d_out: int = 2
    feature_names: dict[int, str] = field(default_factory=dict)


class FakeLibrary:
    def __init__(self, **hook_points):
        self.held = {(POLICY, name): FakeTranscoder(f"sha256:{name}") for name in hook_points}

    def find(self, policy_hash, hook_point):
        return self.held.get((policy_hash, hook_point))

    def policies(self):
        return {POLICY: tuple(name for _, name in self.held)} if self.held else {}


def encode(transcoder, activations):
    """Feature 0 = x[0] where positive, feature 3 = x[1] where positive; error = y[0]."""
    x = np.asarray(activations.x, np.float32)
    on = x > 0
    values = x[on]
    index = np.tile(np.array([0, 3], np.uint32), (len(x), 1))[on]
    error = np.full(len(x), np.nan, np.float32)
    error[activations.y_rows] = activations.y[:, 0]
    return SparseCodes(
        transcoder.n_features,
        np.concatenate([[0], np.cumsum(on.sum(1))]).astype(np.uint32),
        index,
        values,
        error,
        2 * error,
    )


def manifest(**changes):
    values = {
        "agent": "walker",
        "run_id": "run",
        "boot_id": "boot",
        "policy_hash": POLICY,
        "hook_points": (HookPointSpec("a", 2, 2), HookPointSpec("b", 2, 2)),
        "metrics": (MetricSpec("speed", "m/s"),),
    }
    return Manifest(**(values | changes))


def batch(rows, first_seq=0, hooks=("a", "b"), every=1, seed=0):
    rng = np.random.default_rng(seed)
    steps = steps_without_columns(rows, 1, first_seq)
    y_rows = np.arange(0, rows, every, dtype=np.uint16)
    return StepBatch(
        steps,
        {
            hook: Activations(
                rng.normal(size=(rows, 2)).astype(np.float32),
                rng.uniform(size=(len(y_rows), 2)).astype(np.float32),
                y_rows,
            )
            for hook in hooks
        },
    )


def core(limits=None, clock=lambda: SECOND_NS, hooks=("a", "b")):
    return EncoderCore(FakeLibrary(**dict.fromkeys(hooks)), encode, limits=limits, clock=clock)


def test_an_unknown_policy_is_refused_with_both_names():
    other = "sha256:" + "b" * 64
    with pytest.raises(MismatchError) as refusal:
        core().admit("s", manifest(policy_hash=other))
    assert other in str(refusal.value)
    assert POLICY in str(refusal.value)
    assert "interlatent-live train" in str(refusal.value)


def test_a_known_policy_with_other_hook_points_is_told_which_exist():
    with pytest.raises(MismatchError, match=r"has transcoders for 'a', 'b', but none for 'c'"):
        core().admit("s", manifest(hook_points=(HookPointSpec("c", 2, 2),)))


def test_a_wrong_width_is_refused():
    with pytest.raises(MismatchError, match="maps 2 → 2, but hook point 'a'"):
        core().admit("s", manifest(hook_points=(HookPointSpec("a", 3, 2),)))


def test_hook_points_without_transcoder_are_named_and_the_rest_is_encoded():
    encoder = core(hooks=("a",))
    assert encoder.admit("s", manifest()) == ("b",)
    encoder.submit("s", batch(3), 0)
    (out,) = encoder.encode_ready(0, flush=True)
    assert set(out.codes) == {"a"}
    assert out.transcoders == {"a": "sha256:a"}


def test_a_run_alone_waits_for_nobody_and_two_wait_for_each_other():
    encoder = core(BatchLimits(max_delay_ns=1000))
    encoder.admit("s", manifest())
    encoder.submit("s", batch(3), 0)
    assert encoder.next_ready_ns() == 0
    assert len(list(encoder.encode_ready(0))) == 1
    encoder.admit("t", manifest(run_id="other", boot_id="other"))
    encoder.submit("s", batch(3, first_seq=3), 10)
    assert encoder.next_ready_ns() == 1010
    assert list(encoder.encode_ready(1009)) == []
    assert len(list(encoder.encode_ready(1010))) == 1
    encoder.goodbye("t", 0)
    encoder.submit("s", batch(3, first_seq=6), 2000)
    assert len(list(encoder.encode_ready(2000))) == 1


def test_steps_before_hello_are_refused():
    with pytest.raises(UserError, match="has not said hello"):
        core().submit("s", batch(1), 0)


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.sampled_from(["s", "t"]), st.integers(1, 9), st.integers(1, 3)),
        min_size=1,
        max_size=12,
    ),
    st.integers(1, 7),
)
def test_micro_batching_never_changes_the_result(arrivals, max_rows):
    encoder = core(BatchLimits(max_rows=max_rows, quantum_rows=3, max_pending_rows=500))
    for source in ("s", "t"):
        encoder.admit(source, manifest(run_id=source))
    expected = {"s": [], "t": []}
    for number, (source, rows, every) in enumerate(arrivals):
        sent = batch(rows, every=every, seed=number)
        expected[source].append(sent)
        encoder.submit(source, sent, number)
    out = {"s": [], "t": []}
    for features in encoder.encode_ready(10**12, flush=True):
        out[features.run_id].append(features)
    for source, sent in expected.items():
        assert len(out[source]) == len(sent)
        for step_batch, features in zip(sent, out[source], strict=True):
            assert features.steps is step_batch.steps
            for hook, activations in step_batch.activations.items():
                alone = encode(FakeTranscoder("x"), activations)
                np.testing.assert_array_equal(features.codes[hook].dense(), alone.dense())
                np.testing.assert_array_equal(features.codes[hook].error, alone.error)


def test_rows_without_activation_have_no_features_and_no_error():
    encoder = core()
    encoder.admit("s", manifest())
    sent = batch(4)
    sent.steps.flags[2] = StepFlag.NO_ACTIVATION
    encoder.submit("s", sent, 0)
    (out,) = encoder.encode_ready(0, flush=True)
    for codes in out.codes.values():
        assert not codes.dense()[2].any()
        assert np.isnan(codes.error[2])
        assert not np.isnan(codes.error[[0, 1, 3]]).any()


def test_status_adds_up():
    times = iter(range(SECOND_NS, 1000 * SECOND_NS, SECOND_NS))
    encoder = core(clock=lambda: next(times))
    encoder.admit("s", manifest())
    sent = batch(10, every=2)
    encoder.submit("s", sent, 0)
    assert len(list(encoder.encode_ready(0, flush=True))) == 1
    encoder.set_loss("s", received=10, declared={"overrun": 4}, undeclared=0, duplicates=0)
    encoder.goodbye("s", sent=14)
    (status,) = encoder.agents()
    assert (status.steps_sent, status.steps_received, status.steps_encoded) == (14, 10, 10)
    assert status.dropped_declared == {"overrun": 4}
    assert status.ended
    mean = float(sent.activations["a"].y[:, 0].astype(np.float64).mean())
    assert status.hook_points[0].fvu == pytest.approx(mean, rel=1e-5)
    assert status.hook_points[0].fvu_affine == pytest.approx(2 * mean, rel=1e-5)
    assert status.hook_points[0].fvu_steps == 5
    assert status.steps_per_second > 0


def test_a_run_that_vanished_ends_is_counted_and_makes_room():
    one = core()
    for number in range(RUNS_SHOWN):
        one.admit(f"s{number}", manifest(run_id=f"run{number}", boot_id=f"boot{number}"))
    one.vanish("s0")
    assert one.vanished == 1
    assert not one.follows("s0")
    assert "s0" not in one.going_on()
    assert one.agents()[0].ended
    assert one.agents()[0].steps_sent is None
    one.admit("more", manifest(run_id="more", boot_id="more"))
    assert one.manifest("s0") is not None, "runs that go on push nobody out"
    for number in range(1, RUNS_SHOWN):
        one.vanish(f"s{number}")
    one.goodbye("more", 0)
    one.admit("next", manifest(run_id="next", boot_id="next"))
    assert len(one.agents()) == RUNS_SHOWN
    assert one.manifest("s0") is None
    one.admit("s0", manifest(run_id="run0", boot_id="boot0"))
    assert one.follows("s0")
    assert one.retired() == ()


def test_who_asks_for_room_first_loses_nothing():
    encoder = core(BatchLimits(max_rows=4, quantum_rows=4, max_pending_rows=64))
    encoder.admit("s", manifest())
    taken = 0
    while encoder.has_room():
        assert encoder.submit("s", batch(8, first_seq=taken), 0)
        taken += 8
    assert taken == 16  # of two hook points: half of the room
    assert sum(len(features.steps) for features in encoder.encode_ready(0)) == taken
    assert encoder.has_room()
    assert encoder.agents()[0].dropped_declared == {}


def test_an_overloaded_encoder_declares_what_it_cannot_keep():
    encoder = core(BatchLimits(max_rows=4, quantum_rows=4, max_pending_rows=8))
    encoder.admit("s", manifest())
    for number in range(3):
        encoder.submit("s", batch(4, first_seq=4 * number), 0)
    out = list(encoder.encode_ready(0, flush=True))
    assert sum(len(features.steps) for features in out) == 4
    assert encoder.agents()[0].dropped_declared == {OVERLOAD: 8}


def test_a_new_version_begins_with_the_next_message_and_nothing_mixes():
    encoder = core(hooks=("a", "b"))
    for source in ("s", "t"):
        encoder.admit(source, manifest(run_id=source))
    assert encoder.serving() == {(POLICY, "a"): "sha256:a", (POLICY, "b"): "sha256:b"}
    encoder.submit("s", batch(3), 0)
    assert encoder.replace(POLICY, "a", FakeTranscoder("sha256:a2")) == 2
    encoder.submit("s", batch(4, first_seq=3), 1)
    assert encoder.retired() == ()  # the first message still needs the old one
    out = list(encoder.encode_ready(10**12, flush=True))
    assert [one.steps.first_seq for one in out] == [0, 3]
    assert [one.transcoders["a"] for one in out] == ["sha256:a", "sha256:a2"]
    assert {one.transcoders["b"] for one in out} == {"sha256:b"}
    assert encoder.retired() == ("sha256:a",)
    assert encoder.retired() == ()
    assert encoder.agents()[0].hook_points[0].fvu_steps == 4
    encoder.goodbye("s", 7)
    encoder.goodbye("t", 0)
    assert set(encoder.retired()) == {"sha256:a2", "sha256:b"}
    assert encoder.agents()[0].hook_points[0].transcoder == "sha256:a2"


def test_a_version_of_other_widths_is_refused_and_nothing_changes():
    encoder = core(hooks=("a",))
    encoder.admit("s", manifest())
    with pytest.raises(MismatchError, match="maps 5 → 2, but hook point 'a'"):
        encoder.replace(POLICY, "a", FakeTranscoder("sha256:a2", d_in=5))
    assert encoder.transcoders("s") == {"a": "sha256:a"}


def test_a_hook_point_gets_its_first_transcoder_while_the_agent_runs():
    encoder = core(hooks=("a",))
    encoder.admit("s", manifest())
    assert encoder.serving() == {(POLICY, "a"): "sha256:a", (POLICY, "b"): None}
    encoder.replace(POLICY, "b", FakeTranscoder("sha256:b"))
    encoder.submit("s", batch(3), 0)
    (out,) = encoder.encode_ready(0, flush=True)
    assert out.transcoders == {"a": "sha256:a", "b": "sha256:b"}


def test_what_encodes_beside_its_policy_is_not_replaced_here():
    encoder = core(hooks=("a",))
    encoder.admit_encoded("s", manifest(), {"a": "sha256:own"})
    assert encoder.serving() == {}
    assert encoder.replace(POLICY, "a", FakeTranscoder("sha256:a2")) == 0


@settings(max_examples=60)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from(["s", "t"]), st.integers(1, 9)),
            st.sampled_from(["a", "b", "take"]),
        ),
        max_size=24,
    ),
    st.integers(1, 7),
)
def test_versions_never_mix_never_go_back_and_lose_no_row(events, max_rows):
    encoder = core(BatchLimits(max_rows=max_rows, quantum_rows=3, max_pending_rows=500))
    for source in ("s", "t"):
        encoder.admit(source, manifest(run_id=source))
    version = {"a": 0, "b": 0}
    sent = {"s": [], "t": []}
    out = {"s": [], "t": []}
    for now, event in enumerate(events):
        if event == "take":
            for features in encoder.encode_ready(now):
                out[features.run_id].append(features)
        elif isinstance(event, str):
            version[event] += 1
            identity = f"sha256:{event}{version[event]}"
            encoder.replace(POLICY, event, FakeTranscoder(identity))
        else:
            source, rows = event
            encoder.submit(source, batch(rows, seed=now), now)
            expected = {h: f"sha256:{h}{v or ''}" for h, v in version.items()}
            sent[source].append((rows, expected))
    for features in encoder.encode_ready(10**12, flush=True):
        out[features.run_id].append(features)
    for source, messages in sent.items():
        found = [(len(one.steps), one.transcoders) for one in out[source]]
        assert found == messages


def test_names_of_probes_are_published_with_their_hook_point():
    library = FakeLibrary(a=None)
    library.held[POLICY, "a"] = FakeTranscoder("sha256:a", feature_names={3: "probe: falls"})
    encoder = EncoderCore(library, encode, clock=lambda: SECOND_NS)
    encoder.admit("s", manifest())
    (hook,) = encoder.agents()[0].hook_points
    assert hook.feature_names == {"3": "probe: falls"}
    encoder.goodbye("s", 0)
    (hook,) = encoder.agents()[0].hook_points
    assert hook.feature_names == {"3": "probe: falls"}

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interlatent_live.errors import UserError
from interlatent_live.explanations.evidence import EvidenceStore, collect_evidence
from interlatent_live.explanations.planted import sparse_codes
from interlatent_live.stream import Controller, FeatureBatch, MetricSpec, StepFlag, Steps

SPECS = (MetricSpec("a"), MetricSpec("b"))
HOOK = "hidden.1"


def stream(seed=0, envs=3, steps=120, features=5, batch=16, boot="boot"):
    """Interleaved copies with episodes of several lengths, as batches of ``batch`` rows."""
    random = np.random.default_rng(seed)
    listed = []
    episode = np.zeros(envs, int)
    t = np.zeros(envs, int)
    length = random.integers(5, 25, envs)
    for now in range(steps):
        for env in range(envs):
            listed.append((env, episode[env], t[env], now))
            t[env] += 1
            if t[env] == length[env]:
                episode[env] += 1
                t[env] = 0
                length[env] = random.integers(5, 25)
    rows: Any = np.array(listed)
    dense = np.where(
        random.random((len(rows), features)) < 0.3, random.random((len(rows), features)) + 0.1, 0
    )
    metrics = np.stack([rows[:, 1] * 1000 + rows[:, 2], rows[:, 0]], axis=1).astype(float)
    batches = []
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        steps_ = Steps(
            first_seq=start,
            env=part[:, 0].astype(np.uint16),
            episode=part[:, 1].astype(np.uint32),
            t=part[:, 2].astype(np.uint32),
            time_ns=(part[:, 3] * 1000 + part[:, 0]).astype(np.int64),
            controller=np.zeros(len(part), np.uint8),
            flags=np.zeros(len(part), np.uint8),
            metrics=metrics[start : start + batch],
        )
        codes = {HOOK: sparse_codes(dense[start : start + batch])}
        batches.append(FeatureBatch("run", boot, steps_, codes, {HOOK: "sha256:t"}))
    return batches, rows, dense, metrics


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 100), st.integers(1, 64))
def test_rows_are_sorted_by_episode_and_keep_their_features(seed, batch):
    batches, rows, dense, metrics = stream(seed, batch=batch)
    evidence = collect_evidence(batches, SPECS, HOOK)
    order = np.lexsort((rows[:, 2], rows[:, 1], rows[:, 0]))
    np.testing.assert_array_equal(evidence.metrics, metrics[order])
    np.testing.assert_array_equal(evidence.t, rows[order, 2])
    np.testing.assert_array_equal(evidence.past, evidence.t)
    for feature in range(5):
        np.testing.assert_allclose(evidence.activation(feature), dense[order, feature], rtol=1e-6)
        np.testing.assert_array_equal(evidence.on(feature), dense[order, feature] > 0)
    np.testing.assert_allclose(evidence.density(), (dense > 0).mean(0))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 50), st.integers(0, 2**30))
def test_selecting_units_is_the_same_as_never_having_seen_the_others(seed, mask):
    batches, *_ = stream(seed)
    whole = collect_evidence(batches, SPECS, HOOK)
    keep = np.array([(mask >> (u % 30)) & 1 for u in range(whole.n_units)], bool)
    part = whole.select(keep)
    inside = keep[whole.unit]
    np.testing.assert_array_equal(part.metrics, whole.metrics[inside])
    np.testing.assert_array_equal(part.past, whole.past[inside])
    assert part.n_units == keep.sum()
    for feature in range(5):
        np.testing.assert_array_equal(part.on(feature), whole.on(feature)[inside])
        np.testing.assert_array_equal(part.activation(feature), whole.activation(feature)[inside])


def test_held_out_episodes_are_those_begun_later_and_seen_from_their_start():
    batches, rows, _, _ = stream()
    late = [replace_rows(b) for b in batches[3:]]
    store = EvidenceStore(SPECS)
    for batch in late:
        store.add(batch)
    evidence = store.evidence(HOOK)
    assert not evidence.unit_begins[0], "this episode began before the store did"
    held_out = evidence.begun_after(50_000)
    assert held_out.unit_begins.all()
    assert (held_out.unit_begun_ns > 50_000).all()
    assert (held_out.t[held_out.past == 0] == 0).all()
    begun = {(row[0], row[1]) for row in rows if row[2] == 0 and row[3] * 1000 + row[0] > 50_000}
    assert {tuple(key[1:3]) for key in held_out.unit_key} == begun


def replace_rows(batch):
    return batch


def test_splits_are_by_episode_and_reproducible():
    evidence = collect_evidence(stream()[0], SPECS, HOOK)
    a, b = evidence.split(0.5, seed=1)
    again, _ = evidence.split(0.5, seed=1)
    keys = {tuple(k) for k in a.unit_key}, {tuple(k) for k in b.unit_key}
    assert not keys[0] & keys[1]
    assert len(keys[0] | keys[1]) == evidence.n_units
    np.testing.assert_array_equal(a.unit_key, again.unit_key)
    one = evidence.select(np.arange(evidence.n_units) == 0)
    with pytest.raises(UserError, match="1 episode"):
        one.split()


def test_memory_is_bounded_and_the_rest_still_is_right():
    batches, *_ = stream(steps=400)
    whole = EvidenceStore(SPECS)
    for batch in batches:
        whole.add(batch)
    store = EvidenceStore(SPECS, limit_bytes=whole.used_bytes // 4)
    for batch in batches:
        store.add(batch)
        assert store.used_bytes <= store.limit_bytes
    assert store.forgotten_rows == len(whole) - len(store)
    evidence = store.evidence(HOOK)
    assert len(evidence) == len(store)
    assert (evidence.metrics[:, 0] % 1000 == evidence.t).all()


def test_rows_of_other_controllers_and_without_activation_are_never_scored():
    batches, _, dense, _ = stream()
    changed = []
    for batch in batches:
        controller = batch.steps.controller.copy()
        controller[0] = Controller.INTERVENTION
        flags = batch.steps.flags.copy()
        flags[1] = StepFlag.NO_ACTIVATION
        changed.append(
            replace(batch, steps=replace(batch.steps, controller=controller, flags=flags))
        )
    evidence = collect_evidence(changed, SPECS, HOOK)
    assert (~evidence.scored).sum() == 2 * len(batches)
    assert evidence.scored[evidence.rows].all()
    assert len(evidence.rows) < (dense > 0).sum()
    assert (evidence.past == evidence.t).all(), "windows still see their metrics"


def test_a_row_sent_twice_counts_once():
    batches, *_ = stream()
    once = collect_evidence(batches, SPECS, HOOK)
    twice = collect_evidence([*batches, *batches[2:5]], SPECS, HOOK)
    np.testing.assert_array_equal(once.metrics, twice.metrics)
    np.testing.assert_array_equal(once.rows, twice.rows)


def test_only_the_newest_transcoders_rows_count():
    batches, *_ = stream()
    newer = [replace(b, boot_id="later", transcoders={HOOK: "sha256:new"}) for b in batches]
    evidence = collect_evidence([*batches, *newer], SPECS, HOOK)
    assert evidence.transcoder_hash == "sha256:new"
    assert len(evidence) == sum(len(b.steps) for b in batches)


def test_two_boots_are_two_sets_of_episodes():
    batches, *_ = stream()
    later = [replace(b, boot_id="later") for b in batches]
    evidence = collect_evidence([*batches, *later], SPECS, HOOK)
    assert evidence.n_units == 2 * collect_evidence(batches, SPECS, HOOK).n_units


def test_blocks_cut_endless_episodes_but_windows_still_reach_back():
    batches, *_ = stream()
    evidence = collect_evidence(batches, SPECS, HOOK, block_steps=10)
    assert (np.bincount(evidence.unit) <= 10).all()
    assert (evidence.past == evidence.t).all()
    assert (evidence.unit_key[evidence.unit, 3] == evidence.t // 10).all()
    assert evidence.unit_begins.all()


def test_what_is_missing_is_said():
    store = EvidenceStore(SPECS)
    with pytest.raises(UserError, match="none yet"):
        store.evidence(HOOK)
    batches, *_ = stream()
    store.add(batches[0])
    with pytest.raises(UserError, match=r"hidden\.9.*seen: hidden\.1"):
        store.evidence("hidden.9")
    with pytest.raises(UserError, match="2 metrics but its manifest names 1"):
        EvidenceStore(SPECS[:1]).add(batches[0])


def test_coverage_counts_bouts_and_episodes():
    batches, rows, dense, _ = stream()
    coverage = collect_evidence(batches, SPECS, HOOK).coverage()
    order = np.lexsort((rows[:, 2], rows[:, 1], rows[:, 0]))
    on = dense[order] > 0
    key = rows[order, 0] * 1000 + rows[order, 1]
    for feature in range(5):
        column = on[:, feature]
        starts = column.copy()
        starts[1:] &= ~(column[:-1] & (key[1:] == key[:-1]))
        assert coverage.bouts[feature] == starts.sum()
        assert coverage.units[feature] == len(np.unique(key[column]))
    assert coverage.live().all()
    assert coverage.eligible().all()


def test_an_empty_selection_is_empty_and_harmless():
    evidence = collect_evidence(stream()[0], SPECS, HOOK)
    none = evidence.begun_after(10**18)
    assert (len(none), none.n_units) == (0, 0)
    assert not none.coverage().eligible().any()
    assert none.coverage().bouts.tolist() == [0] * 5

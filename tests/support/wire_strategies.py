"""Hypothesis strategies for everything that travels."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from interlatent_live.stream import (
    Activations,
    FeatureBatch,
    HookPointSpec,
    Manifest,
    MetricSpec,
    Role,
    SparseCodes,
    StepBatch,
    Steps,
)
from interlatent_live.wire.messages import Document, Drop, DropReason, FeaturesMessage, StepsMessage

SEQ = st.integers(0, 2**62)
NAMES = st.text(
    st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), min_size=1, max_size=24
)
DROPS = st.lists(
    st.builds(Drop, SEQ, st.integers(1, 2**40), st.sampled_from(DropReason)), max_size=4
).map(tuple)


def column(dtype, rows, elements=None):
    return npst.arrays(dtype, rows, elements=elements)


@st.composite
def steps(draw, max_rows=9):
    rows = draw(st.integers(1, max_rows))
    metrics = draw(st.integers(0, 4))
    return Steps(
        first_seq=draw(SEQ),
        env=draw(column(np.uint16, rows)),
        episode=draw(column(np.uint32, rows)),
        t=draw(column(np.uint32, rows)),
        time_ns=draw(column(np.int64, rows)),
        controller=draw(column(np.uint8, rows, st.integers(0, 3))),
        flags=draw(column(np.uint8, rows, st.integers(0, 7))),
        metrics=draw(npst.arrays(np.float64, (rows, metrics))),
    )


@st.composite
def activations(draw, rows):
    dtype = draw(st.sampled_from([np.float32, np.float16]))
    sampled = sorted(draw(st.sets(st.integers(0, rows - 1))))
    return Activations(
        x=draw(npst.arrays(dtype, (rows, draw(st.integers(1, 5))))),
        y=draw(npst.arrays(dtype, (len(sampled), draw(st.integers(1, 5))))),
        y_rows=np.array(sampled, np.uint16),
    )


@st.composite
def steps_messages(draw):
    columns = draw(steps())
    names = draw(st.lists(NAMES, max_size=3, unique=True))
    return StepsMessage(
        boot_id=draw(NAMES),
        batch=StepBatch(columns, {n: draw(activations(len(columns))) for n in names}),
        drops=draw(DROPS),
        sent_ns=draw(SEQ),
    )


@st.composite
def codes(draw, rows):
    n_features = draw(st.integers(1, 12))
    active = draw(npst.arrays(np.bool_, (rows, n_features)))
    row, index = np.nonzero(active)
    positive = st.floats(width=32, min_value=0, exclude_min=True, allow_infinity=False)
    return SparseCodes(
        n_features=n_features,
        indptr=np.concatenate([[0], np.cumsum(active.sum(axis=1))]).astype(np.uint32),
        index=index.astype(np.uint32),
        value=draw(column(np.float32, len(row), positive)),
        error=draw(column(np.float32, rows)),
        error_affine=draw(column(np.float32, rows)),
    )


@st.composite
def features_messages(draw):
    columns = draw(steps())
    names = draw(st.lists(NAMES, max_size=3, unique=True))
    return FeaturesMessage(
        batch=FeatureBatch(
            run_id=draw(NAMES),
            boot_id=draw(NAMES),
            steps=columns,
            codes={name: draw(codes(len(columns))) for name in names},
            transcoders={name: draw(NAMES) for name in names},
            encoded_ns=draw(SEQ),
        ),
        drops=draw(DROPS),
        sent_ns=draw(SEQ),
    )


@st.composite
def manifests(draw):
    return Manifest(
        agent=draw(NAMES),
        run_id=draw(NAMES),
        boot_id=draw(NAMES),
        policy_hash=draw(NAMES),
        hook_points=tuple(
            HookPointSpec(name, draw(st.integers(1, 4096)), draw(st.integers(1, 4096)))
            for name in draw(st.lists(NAMES, max_size=3, unique=True))
        ),
        metrics=tuple(
            MetricSpec(name, draw(NAMES), draw(st.sampled_from(Role)), draw(NAMES))
            for name in draw(st.lists(NAMES, max_size=3, unique=True))
        ),
        env_count=draw(st.integers(1, 64)),
        control_hz=draw(st.none() | st.floats(0.1, 1e6)),
        environment=draw(NAMES),
        actions=tuple(draw(st.lists(NAMES, max_size=3))),
    )


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
DOCUMENTS = st.builds(
    Document,
    topic=NAMES,
    source=NAMES,
    payload=st.dictionaries(st.text(max_size=8), PLAIN, max_size=5),
    seq=SEQ,
    sent_ns=SEQ,
)

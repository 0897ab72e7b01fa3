import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from interlatent_live.pipeline.gathering import Gatherer
from interlatent_live.stream import FeatureBatch, SparseCodes, steps_without_columns

NAMES = ("h", "g")


def batch(boot_id, first, rows, transcoder="sha256:1"):
    """Row s has s % 3 features in each hook point, all of value s + 1."""
    steps = steps_without_columns(rows, 2, first)
    number = first + np.arange(rows)
    steps.metrics[:, 0] = number
    counts = number % 3
    codes = SparseCodes(
        8,
        np.concatenate([[0], np.cumsum(counts)]).astype(np.uint32),
        np.concatenate([np.arange(c) for c in counts]).astype(np.uint32),
        np.repeat(number + 1, counts).astype(np.float32),
        number.astype(np.float32),
        -number.astype(np.float32),
    )
    return FeatureBatch(
        "run", boot_id, steps, dict.fromkeys(NAMES, codes), dict.fromkeys(NAMES, transcoder), first
    )


def rows_of(out):
    """(boot, row, dense features, error) of everything that came out, in order."""
    found = []
    for one in out:
        assert one.steps.first_seq == one.steps.metrics[0, 0]
        for name in NAMES:
            code = one.codes[name]
            assert len(code) == len(one.steps)
            assert code.indptr.dtype == np.uint32
            assert np.array_equal(code.error, one.steps.metrics[:, 0])
            assert np.array_equal(code.dense().sum(1), [(s + 1) * (s % 3) for s in code.error])
        found += [(one.boot_id, int(s)) for s in one.steps.metrics[:, 0]]
    return found


@given(
    st.lists(
        st.tuples(
            st.sampled_from("ab"),
            st.integers(1, 9),
            st.sampled_from(["", "", "hole", "version"]),
            st.integers(0, 30),
        )
    ),
    st.integers(1, 20),
    st.integers(1, 4000),
)
def test_every_row_goes_on_once_and_in_the_order_of_its_run(actions, rows, limit):
    gatherer = Gatherer(limit, rows=rows, delay_ns=50)
    out, given_rows, now = [], [], 0
    following = {"a": 0, "b": 0}
    version = {"a": 0, "b": 0}
    for boot_id, count, event, later in actions:
        now += later
        following[boot_id] += 5 if event == "hole" else 0
        version[boot_id] += event == "version"
        first = following[boot_id]
        given_rows += [(boot_id, first + i) for i in range(count)]
        following[boot_id] = first + count
        out += gatherer.add(batch(boot_id, first, count, f"sha256:{version[boot_id]}"), now)
        out += gatherer.due(now)
        assert gatherer.n_bytes <= limit
        due = gatherer.next_due_ns()
        assert due is None or now < due <= now + 50
    out += gatherer.flush()
    assert gatherer.n_bytes == 0
    assert gatherer.next_due_ns() is None
    found = rows_of(out)
    for boot_id in "ab":
        assert [r for r in found if r[0] == boot_id] == [r for r in given_rows if r[0] == boot_id]


def test_rows_of_a_run_become_one_batch_and_wait_no_longer_than_told():
    gatherer = Gatherer(1 << 20, rows=100, delay_ns=50)
    assert [*gatherer.add(batch("a", 0, 3), 0), *gatherer.add(batch("a", 3, 4), 20)] == []
    assert gatherer.next_due_ns() == 50
    assert list(gatherer.due(49)) == []
    (whole,) = gatherer.due(50)
    assert len(whole.steps) == 7
    assert whole.encoded_ns == 3
    assert list(gatherer.flush("a")) == []


def test_with_many_runs_each_waits_longer_and_none_beyond_four_times():
    gatherer = Gatherer(1 << 30, delay_ns=50)
    for number in range(64):
        assert list(gatherer.add(batch(f"run{number}", 0, 1), 0)) == []
    assert gatherer.next_due_ns() == 100
    assert list(gatherer.due(99)) == []
    for number in range(64, 1000):
        assert list(gatherer.add(batch(f"run{number}", 0, 1), 0)) == []
    assert gatherer.next_due_ns() == 200
    assert len(list(gatherer.due(200))) == 1000


def test_another_version_begins_another_batch():
    gatherer = Gatherer(1 << 20)
    assert list(gatherer.add(batch("a", 0, 3), 0)) == []
    (old,) = gatherer.add(batch("a", 3, 3, "sha256:2"), 0)
    (new,) = gatherer.flush("a")
    assert (set(old.transcoders.values()), set(new.transcoders.values())) == (
        {"sha256:1"},
        {"sha256:2"},
    )

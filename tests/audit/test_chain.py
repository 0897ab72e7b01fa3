"""Seals: every change to a chain is noticed, and a stolen state cannot rewrite the past."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlatent_live.audit.chain import (
    GENESIS,
    MAX_LINE,
    ChainState,
    Entry,
    append,
    next_key,
    parse,
    verified,
)
from interlatent_live.errors import CorruptFileError

KEY = bytes(range(32))
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
BODIES = st.dictionaries(st.text(max_size=10), JSON, max_size=4)


def chain(bodies, key=KEY):
    state, lines = ChainState.start(key), []
    for i, body in enumerate(bodies):
        entry, state = append(state, "permitted", body, 1_000 + i)
        lines.append(entry.line())
    return lines, state


@given(st.lists(BODIES, max_size=6))
def test_what_was_written_verifies_and_reads_back(bodies):
    lines, end = chain(bodies)
    read = list(verified(lines, KEY))
    assert [dict(entry.body) for entry, _ in read] == bodies
    assert (read[-1][1] if read else ChainState.start(KEY)) == end


@given(st.lists(BODIES, min_size=1, max_size=4), st.data())
def test_no_single_byte_can_change(bodies, data):
    lines, _ = chain(bodies)
    text = b"".join(lines)
    at = data.draw(st.integers(0, len(text) - 1))
    put = data.draw(st.integers(0, 255).filter(lambda byte: byte != text[at]))
    changed = text[:at] + bytes([put]) + text[at + 1 :]
    with pytest.raises(CorruptFileError):
        list(verified(changed.splitlines(keepends=True), KEY))


@pytest.mark.parametrize(
    "edit",
    [
        lambda lines: lines[1:],
        lambda lines: lines[:1] + lines[2:],
        lambda lines: [lines[1], lines[0], *lines[2:]],
        lambda lines: [*lines, lines[-1]],
        lambda lines: [*lines[:-1], lines[-1].rstrip(b"\n")],
        lambda lines: [line.replace(b'"n":', b'"n": ') for line in lines],
    ],
    ids=["first gone", "middle gone", "swapped", "repeated", "torn", "spaced"],
)
def test_lines_cannot_be_moved(edit):
    lines, _ = chain([{"i": i} for i in range(4)])
    with pytest.raises(CorruptFileError):
        list(verified(edit(lines), KEY))


def test_who_takes_the_state_can_go_on_but_not_rewrite_what_was():
    lines, stolen = chain([{"i": i} for i in range(4)])
    entry, _ = append(stolen, "permitted", {"forged": True}, 9)
    assert len(list(verified([*lines, entry.line()], KEY))) == 5  # after the theft: cannot be told
    forged, _ = append(
        ChainState(2, parse(lines[1], 1).seal, stolen.key), "permitted", {"i": "other"}, 1_002
    )
    with pytest.raises(CorruptFileError, match="entry 2"):
        list(verified([*lines[:2], forged.line(), lines[3]], KEY))


def test_a_file_written_anew_under_another_key_does_not_verify():
    lines, _ = chain([{"i": 0}], key=next_key(KEY))
    with pytest.raises(CorruptFileError, match=r"entry 0 .* another key"):
        list(verified(lines, KEY))


@pytest.mark.parametrize(
    "line",
    [b"", b"{}\n", b"[]\n", b"null\n", b"\xff\n", b"[" * 100_000, b'{"n":1e999}\n', b"1\n"],
)
def test_garbage_is_refused_with_a_sentence(line):
    with pytest.raises(CorruptFileError, match="cannot be read"):
        parse(line, 0)


def test_an_entry_that_would_not_be_read_again_is_not_written():
    with pytest.raises(ValueError, match="exceeds"):
        append(ChainState.start(KEY), "k", {"text": "x" * MAX_LINE}, 0)
    with pytest.raises(ValueError, match="JSON"):
        append(ChainState.start(KEY), "k", {"x": float("nan")}, 0)


def test_the_first_entry_follows_the_genesis():
    entry, _ = append(ChainState.start(KEY), "k", {}, 0)
    assert entry.before == GENESIS
    assert dataclasses.replace(entry, seal="") == Entry(0, 0, "k", {}, GENESIS, "")

from __future__ import annotations

import pytest

from interlatent_live.bench.parts import Parts
from interlatent_live.bench.report import bench_row


def row(value):
    return bench_row("a", value, "share", reference="bar", reference_value=0.0, goal="value >= 1")


def test_what_was_made_is_not_made_again(tmp_path):
    made = []

    def make():
        made.append(1)
        return [row(2.0), row(0.5)]

    first = Parts("x", {"seed": 1}, root=tmp_path).rows("one", make)
    again = Parts("x", {"seed": 1}, root=tmp_path).rows("one", make)
    assert first == again == [row(2.0), row(0.5)]
    assert len(made) == 1
    # Another seed is another folder, another part another file.
    Parts("x", {"seed": 2}, root=tmp_path).rows("one", make)
    Parts("x", {"seed": 1}, root=tmp_path).rows("two", make)
    assert len(made) == 3


def test_a_part_cut_off_leaves_nothing_behind(tmp_path):
    parts = Parts("x", 0, root=tmp_path)

    def cut_off():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        parts.value("one", cut_off)
    assert parts.value("one", lambda: {"a": [1, 2]}) == {"a": [1, 2]}
    parts.forget()
    assert not parts.folder.exists()
    parts.forget()

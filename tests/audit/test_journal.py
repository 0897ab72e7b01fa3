"""The agent's journal: lines in order, never waited for, bounded on the disk."""

import json
import os

import pytest

from interlatent_live.audit import journal as module
from interlatent_live.audit.journal import Journal
from interlatent_live.errors import UserError


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_are_written_in_order_and_for_the_owner_only(tmp_path):
    journal = Journal(tmp_path / "deep" / "journal.jsonl")
    for i in range(50):
        journal.write("event", {"number": i})
    journal.close()
    assert [line["number"] for line in lines(journal.path)] == list(range(50))
    assert journal.path.stat().st_mode & 0o077 == 0
    assert journal.lost == 0


def test_it_goes_on_where_it_was_and_turns_over(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LARGEST", 400)
    for run in range(2):
        journal = Journal(tmp_path / "journal.jsonl")
        for i in range(6):
            journal.write("event", {"run": run, "number": i})
        journal.close()
    kept = lines(tmp_path / "journal.before.jsonl") + lines(tmp_path / "journal.jsonl")
    assert [(line["run"], line["number"]) for line in kept][-6:] == [(1, i) for i in range(6)]
    assert (tmp_path / "journal.jsonl").stat().st_size <= 400


def test_a_full_disk_loses_lines_and_counts_them(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "journal.jsonl")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    journal.write("event", {})
    journal.close()
    assert journal.lost == 1


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        Journal(tmp_path / "file" / "journal.jsonl")

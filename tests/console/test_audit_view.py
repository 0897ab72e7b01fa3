"""The audit over HTTP: newest first, growing while it is read, and what a check says of damage."""

import json

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from interlatent_live.audit.log import FIRST_KEY, LOG, AuditLog
from interlatent_live.console import audit_view
from interlatent_live.console.audit_view import AuditView, router


@pytest.fixture
def log(tmp_path):
    with AuditLog(tmp_path) as made:
        for number in range(10):
            made.append("commanded", {"actor": "ada", "reason": f"number {number}"})
        yield made


@pytest.fixture
def http(tmp_path, log, monkeypatch):
    monkeypatch.setattr(audit_view, "AGAIN_AFTER_S", 0.0)
    app = FastAPI()
    app.include_router(router(AuditView(tmp_path)))
    with TestClient(app) as client:
        yield client


def read(http, **query):
    answer = http.get("/control/audit", params=query)
    assert answer.status_code == 200
    return answer.json()


def test_entries_come_newest_first_in_pages_while_more_are_written(http, log):
    page = read(http, limit=4)
    assert [row["number"] for row in page["entries"]] == [9, 8, 7, 6]
    assert page["entries"][0]["reason"] == "number 9"
    assert page["entries"][0]["kind"] == "commanded"
    assert page["checked"]["ok"] is True
    assert page["checked"]["entries"] == 10
    log.append("commanded", {"actor": "eve"})
    assert [row["number"] for row in read(http, before=6)["entries"]] == [5, 4, 3, 2, 1, 0]
    newest = read(http, limit=1)
    assert newest["entries"][0]["actor"] == "eve"
    assert newest["checked"]["entries"] == 11
    assert read(http, before=0)["entries"] == []


def test_what_a_body_says_never_hides_what_the_chain_says(http, log):
    log.append("commanded", {"number": 999, "kind": "innocent", "time_ns": 0, "seal": "none"})
    newest = read(http, limit=1)["entries"][0]
    assert (newest["number"], newest["kind"]) == (10, "commanded")
    assert newest["seal"] != "none"


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda lines: [line.replace(b"number 3", b"number 4") for line in lines], "entry 3"),
        (lambda lines: lines[:-2], "its end was cut off"),
        (lambda lines: lines[:4] + lines[5:], "entry 4"),
        (lambda lines: [lines[1], lines[0], *lines[2:]], "entry 0"),
    ],
    ids=["altered", "cut", "gone", "swapped"],
)  # fmt: skip
def test_damage_is_told(http, log, tmp_path, damage, sentence):
    assert read(http)["checked"]["ok"] is True
    file = tmp_path / LOG
    file.write_bytes(b"".join(damage(file.read_bytes().splitlines(keepends=True))))
    checked = read(http)["checked"]
    assert checked["ok"] is False
    assert sentence in checked["sentence"]


def test_a_file_rewritten_with_another_key_is_told(http, log, tmp_path):
    forged = tmp_path / "forged"
    with AuditLog(forged) as other:
        for number in range(10):
            other.append("commanded", {"actor": "eve", "reason": f"number {number}"})
    (tmp_path / LOG).write_bytes((forged / LOG).read_bytes())
    assert read(http)["checked"]["ok"] is False


def test_without_the_first_key_nothing_is_claimed(http, log, tmp_path):
    (tmp_path / FIRST_KEY).unlink()
    checked = read(http)["checked"]
    assert checked["ok"] is None
    assert "audit verify" in checked["sentence"]


def test_no_audit_yet_and_one_that_vanished(tmp_path):
    app = FastAPI()
    app.include_router(router(AuditView(tmp_path / "none")))
    with TestClient(app) as client:
        assert read(client) == {"entries": [], "checked": read(client)["checked"]}
        assert read(client)["checked"]["ok"] is None


def test_lines_that_are_no_entries_are_a_finding_not_a_crash(http, log, tmp_path):
    with (tmp_path / LOG).open("ab") as file:
        file.write(json.dumps({"n": 10}).encode() + b"\n")
    said = read(http)
    assert said["checked"]["ok"] is False

"""Branches as the page shows them: documents of a folder, intervals over moments, bounded jobs."""

import json
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import pytest

from interlatent_live.audit.log import FIRST_KEY, LOG, STATE, read_key, verify
from interlatent_live.console import branches as module
from interlatent_live.console.branches import BranchFolder, BranchJobs, BusyError, Wanted
from interlatent_live.errors import UserError
from interlatent_live.interventions.values import Kind
from interlatent_live.zoo.entry import DATA
from tests.support.branched import POLICY, TRANSCODER, branch_document
from tests.support.console import TOKEN, RunningConsole

WANTED = {
    "policy_hash": POLICY,
    "transcoder": TRANSCODER,
    "hook_point": "hidden.1",
    "feature": 3,
    "kind": Kind.STEER,
    "value": 2.0,
    "while_on": False,
    "seed": 5,
    "moments": 2,
    "at": 10,
    "steps": 20,
    "reason": "to see",
}
PLAYS = "import sys; open(sys.argv[sys.argv.index('--out') + 1], 'w').write('{}')"
"""Stands for the command: writes what it was told to."""


def put(folder, name, **changes):
    (folder / name).write_text(json.dumps(branch_document(**changes)), encoding="utf-8")


def jobs(folder):
    return BranchJobs(folder, DATA / "policies", (DATA / "transcoders",))


def done(one):
    for _ in range(1000):
        if not one.state()["running"]:
            return one.state()
        time.sleep(0.02)
    raise AssertionError(one.state())


def test_a_document_says_what_differs_and_from_when(tmp_path):
    put(tmp_path, "a.json", shift=0.5)
    folder = BranchFolder(tmp_path)
    (item,) = folder.listing()["items"]
    assert item["words"] == "steer hidden.1/12 2.0"
    assert item["with"] - item["without"] == pytest.approx(0.5)
    found = folder.document("a.json")
    first, same = found["differences"]
    assert first["metric"] == "pole_angle"
    # The shift grows from the second step on: 0, 0.5, 1.0, …
    assert (first["first"], first["largest_at"]) == (1, 9)
    assert first["largest"] == pytest.approx(4.5)
    assert (same["metric"], same["first"], same["largest"]) == ("cart_position", None, 0.0)


def test_over_moments_there_is_an_interval_from_eight_on(tmp_path):
    shifts = np.random.default_rng(0).normal(1.0, 0.2, 8)
    for seed, shift in enumerate(shifts):
        put(tmp_path, f"{seed}.json", seed=seed, shift=float(shift))
    put(tmp_path, "again.json", seed=0, shift=float(shifts[0]))
    put(tmp_path, "other.json", seed=1, value=3.0)
    eight, one = BranchFolder(tmp_path).listing()["together"]
    half = 2.3646 * shifts.std(ddof=1) / np.sqrt(8)  # Student, 7 degrees of freedom
    assert eight["moments"] == 8, "the same moment counts once"
    assert eight["mean"] == pytest.approx(shifts.mean())
    assert eight["high"] - eight["mean"] == pytest.approx(half, rel=1e-3)
    assert one["low"] is None
    assert "an interval needs 8" in one["reason"]


@pytest.mark.parametrize(
    "name", ["../secret.json", "link.json", "", "a.txt", "audit", "/etc/hosts"]
)
def test_only_plain_documents_of_the_folder_are_read(tmp_path, name):
    inside = tmp_path / "branches"
    inside.mkdir()
    put(tmp_path, "secret.json")
    (inside / "link.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(UserError, match="there is no branch"):
        BranchFolder(inside).document(name)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"policy": 1}', json.dumps({**branch_document(), "branches": {}})]
)
def test_what_is_no_branch_is_said_to_be_none(tmp_path, text):
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    (item,) = BranchFolder(tmp_path).listing()["items"]
    assert "is no document of interlatent-live branch" in item["problem"]


def test_a_job_plays_each_moment_and_is_in_an_audit_that_verifies(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "service_command", lambda *a: (sys.executable, "-c", PLAYS, *a))
    one = jobs(tmp_path)
    one.start(Wanted(**WANTED), "bob")
    state = done(one)
    assert (state["done"], state["problem"]) == (2, "")
    assert len(BranchFolder(tmp_path).names()) == 2
    audit = tmp_path / "audit"
    verify(audit / LOG, read_key(audit / FIRST_KEY), state=audit / STATE)
    lines = [json.loads(line) for line in (audit / LOG).read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["branch-commanded", "branch-played"]
    assert lines[0]["body"]["actor"] == "bob"
    assert lines[0]["body"]["reason"] == "to see"


def test_one_job_runs_at_a_time_and_what_hangs_is_ended(tmp_path, monkeypatch):
    hangs = "import time; time.sleep(60)"
    monkeypatch.setattr(module, "service_command", lambda *a: (sys.executable, "-c", hangs, *a))
    monkeypatch.setattr(module, "WITHIN_S", 1.0)
    one = jobs(tmp_path)
    one.start(Wanted(**WANTED), "bob")
    with pytest.raises(BusyError, match="being played already"):
        one.start(Wanted(**WANTED), "eve")
    assert "took longer than 1 s" in done(one)["problem"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"policy_hash": "sha256:none"}, "none of those that come with the package"),
        ({"transcoder": "../../x"}, "no folder of the encoder has the transcoder"),
        ({"reason": " "}, "say why"),
        ({"moments": 33}, "between 1 and 32"),
        ({"kind": Kind.CLAMP, "value": -1.0}, "clamp one of at least 0"),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_runs(tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        jobs(tmp_path / "new").start(Wanted(**(WANTED | changes)), "bob")
    assert not (tmp_path / "new").exists()


def test_who_may_not_command_has_nothing_played(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "service_command", lambda *a: (sys.executable, "-c", PLAYS, *a))
    folder = tmp_path / "branches"
    one = jobs(folder)
    with RunningConsole(tmp_path, branches=(BranchFolder(folder), one)) as console:

        def post(token):
            body = json.dumps(WANTED).encode()
            headers = {"Content-Type": "application/json"}
            if token:
                headers["Authorization"] = f"Bearer {token}"
            request = urllib.request.Request(f"{console.url}/api/v1/branches", body, headers)
            try:
                with urllib.request.urlopen(request, timeout=20) as answer:
                    return answer.status
            except urllib.error.HTTPError as error:
                return error.code

        assert [post(""), post("x" * 43)] == [401, 401]
        assert not folder.exists()
        assert post(TOKEN) == 202
        done(one)
        with urllib.request.urlopen(f"{console.url}/api/v1/branches", timeout=20) as answer:
            assert json.load(answer)["job"]["done"] == 2
    one.close()


@pytest.mark.slow
def test_the_command_itself_plays_what_a_job_asks_for(tmp_path):
    one = jobs(tmp_path)
    one.start(Wanted(**(WANTED | {"moments": 1})), "bob")
    for _ in range(60):
        if not one.state()["running"]:
            break
        time.sleep(1.0)
    assert one.state()["problem"] == ""
    (item,) = BranchFolder(tmp_path).listing()["items"]
    assert (item["policy"], item["seed"], item["at"]) == ("cartpole", 5, 10)

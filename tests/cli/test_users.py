"""``users`` as operators run it."""

import subprocess
import sys

import pytest

from interlatent_live.console.users import Users
from interlatent_live.control.wire import Role

WORDS = "correct horse battery"


@pytest.fixture
def run(tmp_path):
    def run(*arguments, given=""):
        return subprocess.run(
            [sys.executable, "-m", "interlatent_live", "users", *arguments,
             "--set", f"console.state={tmp_path / 'state'}"],
            input=given, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

    return run


def test_from_nobody_to_somebody_and_back(run, tmp_path):
    assert "nobody yet" in run("list").stdout
    done = run("add", "ada", "--role", "viewer", "--password-stdin", given=WORDS + "\n")
    assert done.stdout == "ada may log in as viewer\n", done.stderr
    assert run("list").stdout == "ada  viewer\n"
    users = Users(tmp_path / "state")
    assert users.check("ada", WORDS).role is Role.VIEWER
    assert run("passwd", "ada", "--password-stdin", given="another password\n").returncode == 0
    assert users.check("ada", WORDS) is None
    assert users.check("ada", "another password") is not None
    done = run("add", "eve", "--password-stdin", given="short\n")
    assert (done.returncode, done.stderr.startswith("error: a password has")) == (2, True)
    assert run("remove", "ada").returncode == 0
    assert run("remove", "ada").returncode == 2


def test_link_prints_an_address_that_logs_in(run):
    assert run("link").stdout.startswith("http://127.0.0.1:28480/#login=")

"""Who may log in: the file, its hashes, and what is refused."""

import os
import stat
import time

import pytest

from interlatent_live.console import users as users_module
from interlatent_live.console.users import Users, hash_password, verify_password
from interlatent_live.control.wire import Role
from interlatent_live.errors import UserError

WORDS = "correct horse battery"


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    """A full hash takes seconds on a busy machine."""
    monkeypatch.setattr(users_module, "_LOG_N", 8)


def test_a_user_is_added_checked_and_removed(tmp_path):
    users = Users(tmp_path)
    assert users.all() == {}
    users.add("ada", Role.OPERATOR, WORDS)
    assert stat.S_IMODE(users.file.stat().st_mode) == 0o600
    assert WORDS not in users.file.read_text()
    found = Users(tmp_path).check("ada", WORDS)
    assert (found.name, found.role) == ("ada", Role.OPERATOR)
    assert Users(tmp_path).check("ada", WORDS + " ") is None
    assert Users(tmp_path).check("nobody", WORDS) is None
    users.remove("ada")
    assert Users(tmp_path).check("ada", WORDS) is None


def test_another_process_sees_what_has_changed(tmp_path):
    ours, theirs = Users(tmp_path), Users(tmp_path)
    ours.add("ada", Role.VIEWER, WORDS)
    before = theirs.all()["ada"]
    ours.set_password("ada", WORDS * 2)
    after = theirs.all()["ada"]
    assert after.stamp != before.stamp
    assert after.role is Role.VIEWER


@pytest.mark.parametrize("name", ["", "Ada", "a b", "ada]\n[users.eve", "../x", "é", "a" * 33])
def test_a_name_that_is_none_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="no name for a user"):
        Users(tmp_path).add(name, Role.ADMIN, WORDS)


def test_mistakes_are_one_sentence(tmp_path):
    users = Users(tmp_path)
    users.add("ada", Role.ADMIN, WORDS)
    with pytest.raises(UserError, match="there is a user ada already"):
        users.add("ada", Role.ADMIN, WORDS)
    with pytest.raises(UserError, match="there is no user 'eve'; there are: ada"):
        users.remove("eve")
    with pytest.raises(UserError, match="10 to 256 characters, not 5"):
        users.add("eve", Role.VIEWER, "short")


def test_a_file_that_others_can_read_or_that_is_damaged_is_refused(tmp_path):
    users = Users(tmp_path)
    users.add("ada", Role.ADMIN, WORDS)
    users.file.chmod(0o640)
    os.utime(users.file)
    with pytest.raises(UserError, match="readable by nobody else"):
        Users(tmp_path).all()
    users.file.chmod(0o600)
    users.file.write_text('[users.ada]\nrole = "king"\npassword = "x"\n')
    with pytest.raises(UserError, match="no file of users"):
        Users(tmp_path).all()
    users.file.write_text('[users.ada]\nrole = "admin"\npassword = "scrypt$30$8$1$AA==$AA=="\n')
    with pytest.raises(UserError, match="no file of users"):
        Users(tmp_path).all()  # would take 1 TiB
    users.file.unlink()
    users.file.symlink_to("/etc/passwd")
    with pytest.raises((UserError, OSError)):
        Users(tmp_path).all()


def test_unknown_names_take_as_long_as_known_ones(tmp_path):
    users = Users(tmp_path)
    users.add("ada", Role.ADMIN, WORDS)

    def took(name):
        began = time.process_time()
        assert users.check(name, "wrong password") is None
        return time.process_time() - began

    known, unknown = (min(took(name) for _ in range(3)) for name in ("ada", "nobody"))
    assert 0.3 < known / unknown < 3.0


def test_hashes_differ_and_are_checked():
    first, second = hash_password(WORDS), hash_password(WORDS)
    assert first != second
    assert first.startswith("scrypt$8$8$3$")
    assert verify_password(WORDS, first)
    assert not verify_password(WORDS.upper(), first)
    assert not verify_password("x" * 10_000, first)


def test_what_a_hash_takes_is_what_is_recommended(monkeypatch):
    monkeypatch.undo()
    assert hash_password(WORDS).startswith("scrypt$15$8$3$")

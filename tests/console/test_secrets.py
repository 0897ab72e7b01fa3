"""The token: made once, for one user, whoever needs it first."""

from __future__ import annotations

import stat
import threading

import pytest

from interlatent_live.config import Settings, load_settings
from interlatent_live.console.secrets import FILE_NAME, load_token, request_key, state_folder
from interlatent_live.errors import UserError


def settings(folder):
    return load_settings(
        flags={"console.state": str(folder)}, environment={"INTERLATENT_CONFIG": ""}
    )


def test_the_token_is_made_once_and_only_its_owner_reads_it(tmp_path):
    folder = state_folder(settings(tmp_path / "state"))
    token = load_token(folder)
    assert len(token) >= 40
    assert load_token(folder) == token
    assert stat.S_IMODE((folder / FILE_NAME).stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert len(request_key(token)) == 32
    assert token.encode() not in request_key(token)


def test_processes_that_start_together_agree(tmp_path):
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(load_token(tmp_path))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o604])
def test_a_token_that_others_can_read_is_refused(tmp_path, mode):
    load_token(tmp_path)
    (tmp_path / FILE_NAME).chmod(mode)
    with pytest.raises(UserError, match="readable by nobody else; remove it"):
        load_token(tmp_path)


def test_a_link_and_an_empty_file_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("interlatent_live.console.secrets._WRITTEN_WITHIN_S", 0.0)
    other = tmp_path / "other"
    other.write_text("a" * 43)
    (tmp_path / FILE_NAME).symlink_to(other)
    with pytest.raises(UserError, match="can't be read"):
        load_token(tmp_path)
    (tmp_path / FILE_NAME).unlink()
    (tmp_path / FILE_NAME).touch(mode=0o600)
    with pytest.raises(UserError, match="holds no token"):
        load_token(tmp_path)


def test_where_state_is_kept(tmp_path):
    found = {
        variable: state_folder(Settings(), {variable: str(tmp_path / variable)})
        for variable in ("STATE_DIRECTORY", "XDG_STATE_HOME")
    }
    assert found["STATE_DIRECTORY"] == tmp_path / "STATE_DIRECTORY"
    assert found["XDG_STATE_HOME"] == tmp_path / "XDG_STATE_HOME" / "interlatent-live"
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"set console\.state to a folder"):
        state_folder(settings(tmp_path / "file" / "inside"))

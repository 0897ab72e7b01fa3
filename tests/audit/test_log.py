"""The audit's files: crashes, full disks, second processes, and everything a person might alter."""

import errno
import json
import os
import subprocess
import sys
import threading

import pytest

from interlatent_live.audit import log as log_module
from interlatent_live.audit.log import FIRST_KEY, LOG, STATE, AuditLog, read_key, verify
from interlatent_live.errors import CorruptFileError, UserError


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "audit"


def write(folder, count):
    with AuditLog(folder) as log:
        return [log.append("permitted", {"i": i}) for i in range(count)]


def check(folder, **more):
    return verify(folder / LOG, read_key(folder / FIRST_KEY), state=folder / STATE, **more)


def test_entries_survive_reopening_and_verify(folder):
    first = write(folder, 3)
    second = write(folder, 2)
    report = check(folder)
    assert report.entries == 5
    assert report.seal == second[-1].seal
    with AuditLog(folder) as log:
        assert list(log.entries()) == [*first, *second]


def test_only_the_owner_can_read_it(folder):
    write(folder, 1)
    assert folder.stat().st_mode & 0o777 == 0o700
    for name in (LOG, STATE, FIRST_KEY):
        assert (folder / name).stat().st_mode & 0o777 == 0o600, name


def test_threads_share_one_chain(folder):
    with AuditLog(folder) as log:

        def work():
            for i in range(20):
                log.append("applied", {"i": i})

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert check(folder).entries == 80


def test_a_second_process_is_refused(folder):
    with AuditLog(folder):
        code = (
            "import sys; from pathlib import Path\n"
            "from interlatent_live.audit.log import AuditLog\n"
            "AuditLog(Path(sys.argv[1]))"
        )
        run = subprocess.run(
            [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False
        )
    assert "is open in another process" in run.stderr


@pytest.mark.parametrize("cut", [1, 10, 10_000])
def test_a_crash_while_writing_a_line_loses_that_line_only(folder, cut):
    write(folder, 3)
    state = (folder / STATE).read_bytes()
    write(folder, 1)
    text = (folder / LOG).read_bytes()
    lines = text.splitlines(keepends=True)
    torn = lines[3][:cut]
    (folder / STATE).write_bytes(state)
    (folder / LOG).write_bytes(b"".join(lines[:3]) + torn)
    entries = 4 if torn == lines[3] else 3
    with AuditLog(folder) as log:
        assert log.state.n == entries
        log.append("permitted", {"after": True})
    assert check(folder).entries == entries + 1


def test_kill_9_while_appending_leaves_a_chain_that_goes_on(folder):
    code = (
        "import sys; from pathlib import Path\n"
        "from interlatent_live.audit.log import AuditLog\n"
        "log = AuditLog(Path(sys.argv[1]))\n"
        "for i in range(10**9):\n"
        "    log.append('permitted', {'i': i}); print(i, flush=True)"
    )
    told = -1
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True
        ) as child:
            for line in child.stdout:
                told = int(line)
                if told >= 25:
                    break
            child.kill()
    with AuditLog(folder) as log:
        assert log.state.n >= 3 * 26  # each run promised at least 26 entries
    assert check(folder).entries >= 3 * 26


def test_a_full_disk_permits_nothing_more_until_reopened(folder, monkeypatch):
    with AuditLog(folder) as log:
        log.append("permitted", {})

        def full(_fd, _data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(log_module, "_write_all", full)
            with pytest.raises(UserError, match="No space left"):
                log.append("permitted", {})
        with pytest.raises(UserError, match="must be reopened"):
            log.append("permitted", {})
    write(folder, 1)
    assert check(folder).entries == 2


def alter(folder, change):
    path = folder / LOG
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(change(lines)))


def test_an_altered_row_is_named(folder):
    write(folder, 5)
    alter(folder, lambda lines: [line.replace(b'"i":2', b'"i":7') for line in lines])
    with pytest.raises(CorruptFileError, match="entry 2"):
        check(folder)


def test_a_cut_tail_is_noticed_by_the_state_and_by_the_log_itself(folder):
    write(folder, 5)
    alter(folder, lambda lines: lines[:3])
    with pytest.raises(CorruptFileError, match="its end was cut off"):
        check(folder)
    with pytest.raises(CorruptFileError, match="were cut off"):
        AuditLog(folder)


def test_a_tail_cut_together_with_its_state_is_noticed_by_an_anchor(folder):
    write(folder, 3)
    old = (folder / STATE).read_bytes(), (folder / LOG).read_bytes()
    seen = write(folder, 2)[-1].seal
    assert check(folder, anchor=seen).anchored
    (folder / STATE).write_bytes(old[0])
    (folder / LOG).write_bytes(old[1])
    assert check(folder).entries == 3  # in itself it is consistent
    with pytest.raises(CorruptFileError, match="it was cut"):
        check(folder, anchor=seen)


def test_a_file_written_anew_is_noticed(folder, tmp_path):
    write(folder, 3)
    write(tmp_path / "forged", 3)
    (folder / LOG).write_bytes((tmp_path / "forged" / LOG).read_bytes())
    with pytest.raises(CorruptFileError, match="entry 0"):
        check(folder)
    (folder / STATE).write_bytes((tmp_path / "forged" / STATE).read_bytes())
    with pytest.raises(CorruptFileError, match="another key"):
        check(folder)


def test_foreign_lines_at_the_end_are_evidence_and_stay(folder):
    write(folder, 2)
    alter(folder, lambda lines: [*lines, b'{"kind":"forged"}\n'])
    with pytest.raises(CorruptFileError, match="did not write"):
        AuditLog(folder)
    assert (folder / LOG).read_bytes().endswith(b'{"kind":"forged"}\n')


@pytest.mark.parametrize("text", [b"", b"{}", b"[1]", b'{"n":"x"}'])
def test_an_unreadable_state_is_refused(folder, text):
    write(folder, 2)
    (folder / STATE).write_bytes(text)
    with pytest.raises(CorruptFileError, match="state"):
        AuditLog(folder)


def test_entries_without_a_state_are_not_built_upon(folder):
    write(folder, 2)
    (folder / STATE).unlink()
    with pytest.raises(CorruptFileError, match="no state"):
        AuditLog(folder)


def test_a_missing_or_broken_key_is_said(tmp_path):
    with pytest.raises(UserError, match="no audit key"):
        read_key(tmp_path / "none")
    (tmp_path / "short").write_text("abcd")
    with pytest.raises(UserError, match="2 bytes"):
        read_key(tmp_path / "short")


def test_the_key_may_be_taken_elsewhere(folder):
    write(folder, 2)
    key = read_key(folder / FIRST_KEY)
    (folder / FIRST_KEY).unlink()
    write(folder, 1)
    assert verify(folder / LOG, key, state=folder / STATE).entries == 3
    assert "key" in json.loads((folder / STATE).read_bytes())

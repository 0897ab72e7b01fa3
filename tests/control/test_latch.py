"""The stop latch: over restarts, full disks, damage."""

import os
import resource
import signal
import subprocess
import sys

import pytest

from interlatent_live.control.latch import StopLatch
from interlatent_live.errors import UserError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "walker.stop"


def test_a_new_latch_is_open_and_private(path):
    latch = StopLatch(path)
    assert not latch.stopped
    assert path.stat().st_mode & 0o777 == 0o600
    latch.close()


def test_a_stop_survives_until_a_resume(path):
    first = StopLatch(path)
    assert first.stop()
    first.close()
    second = StopLatch(path)
    assert second.stopped
    assert second.resume()
    second.close()
    assert not StopLatch(path).stopped


def test_a_stop_survives_a_kill(path):
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from interlatent_live.control.latch import StopLatch\n"
        "StopLatch(Path(sys.argv[1])).stop(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert run.returncode == -signal.SIGKILL
    assert StopLatch(path).stopped


@pytest.mark.parametrize("damage", [b"", b"run", b"running", b"running \n", b"\0" * 16, b"x" * 99])
def test_what_cannot_be_read_is_a_stop(path, damage):
    latch = StopLatch(path)
    path.write_bytes(damage)
    assert latch.stopped
    latch.close()
    assert StopLatch(path).stopped


def test_latching_needs_no_room_on_the_disk(path):
    latch = StopLatch(path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # No file may grow beyond what it is: as on a full disk, new blocks are refused.
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, before[1]))
    try:
        assert latch.stop()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert latch.stopped


def test_a_failed_write_is_told(path):
    latch = StopLatch(path)
    latch.close()
    assert not latch.resume()
    assert latch.stopped


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot be opened"):
        StopLatch(tmp_path / "state" / "a.stop")


def test_a_folder_in_place_of_the_file_is_refused(path):
    path.mkdir(parents=True)
    with pytest.raises(UserError, match="cannot be opened"):
        StopLatch(path)

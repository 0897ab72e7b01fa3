"""The lossless ways out: nothing is missing after a restart; a full disk stops only the spool."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interlatent_live.agent.retention import Entry, Index, MemoryStore
from interlatent_live.agent.spool import HELLO, SEGMENT, Spool, abandoned
from interlatent_live.errors import UserError
from interlatent_live.wire.messages import DropReason

from .service import Service, until
from .test_sender import UNUSED, balanced, make, publish


def frames(first, size=100):
    return [f"head {first}".encode(), bytes([first % 256]) * size]


def fill(spool, count, rows=4, size=100, start=0):
    for i in range(start, start + count):
        spool.append(i * rows, rows, frames(i * rows, size))


def kept(spool):
    return [entry for entry in spool.entries() if entry.reason is None]


def read(spool, seq):
    """The message that holds a row."""
    entry = spool.at(seq)
    assert entry is not None
    return spool.read(entry)


def test_records_come_back_in_order_and_go_when_released(tmp_path):
    spool = Spool(tmp_path / "s", 10**7, b"hello")
    fill(spool, 50)
    for i in range(50):
        assert read(spool, i * 4 + 2) == frames(i * 4)
    assert spool.at(200) is None
    spool.release(120)
    assert spool.at(100) is None
    assert read(spool, 120) == frames(120)
    spool.release(200)
    spool.close()
    assert not (tmp_path / "s").exists()


def test_segments_are_deleted_once_they_are_acknowledged(tmp_path):
    spool = Spool(tmp_path / "s", 2**20, b"hello")
    fill(spool, 40, size=20_000)
    before = len(list((tmp_path / "s").glob(f"*{SEGMENT}")))
    assert before > 3
    assert spool.nbytes == sum(p.stat().st_size for p in (tmp_path / "s").glob(f"*{SEGMENT}"))
    spool.release(39 * 4)
    assert len(list((tmp_path / "s").glob(f"*{SEGMENT}"))) == 1
    assert spool.nbytes == sum(p.stat().st_size for p in (tmp_path / "s").glob(f"*{SEGMENT}"))
    assert read(spool, 39 * 4) == frames(39 * 4, 20_000)
    spool.close()


def test_a_full_spool_stops_with_a_sentence_and_goes_on_when_there_is_room(tmp_path, caplog):
    spool = Spool(tmp_path / "s", 100_000, b"hello")
    fill(spool, 20, size=10_000)
    lost = [entry for entry in spool.entries() if entry.reason is not None]
    assert [entry.reason for entry in lost] == [DropReason.SPOOL_FULL]
    assert len(kept(spool)) == 9
    assert spool.nbytes <= 100_000
    assert "is full (100000 bytes)" in spool.error
    assert len([r for r in caplog.records if "full" in r.getMessage()]) == 1
    spool.release(9 * 4)
    fill(spool, 1, size=10_000, start=20)
    assert spool.error == ""
    assert read(spool, 80) == frames(80, 10_000)
    spool.close()


def test_a_full_disk_stops_the_spool_and_leaves_no_torn_record(tmp_path, monkeypatch):
    spool = Spool(tmp_path / "s", 10**7, b"hello")
    fill(spool, 3)
    real = os.writev

    def writev(fd, parts):
        real(fd, [parts[0][:10]])
        return 10

    monkeypatch.setattr("interlatent_live.agent.spool.os.writev", writev)
    fill(spool, 2, start=3)
    assert "No space left" in spool.error
    monkeypatch.setattr("interlatent_live.agent.spool.os.writev", real)
    monkeypatch.setattr("interlatent_live.agent.spool._RETRY_S", 0.0)
    spool._retry_at = 0.0
    fill(spool, 2, start=5)
    assert [(e.first, e.reason) for e in spool.entries()] == [
        (0, None),
        (4, None),
        (8, None),
        (12, DropReason.SPOOL_FULL),
        (20, None),
        (24, None),
    ]
    for entry in kept(spool):
        assert spool.read(entry) == frames(entry.first)
    spool.close()


def test_a_disk_that_refuses_is_not_asked_at_every_step(tmp_path, monkeypatch):
    spool = Spool(tmp_path / "s", 10**7, b"hello")
    calls = []

    def writev(fd, parts):
        calls.append(fd)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("interlatent_live.agent.spool.os.writev", writev)
    fill(spool, 50)
    assert len(calls) == 1
    assert "Input/output error" in spool.error
    spool.close()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damage_is_found_and_its_neighbours_stay_good(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("spool") / "s"
    spool = Spool(folder, 10**7, b"hello")
    fill(spool, 12)
    spool._close_current()
    spool._newest = None
    path = next(folder.glob(f"*{SEGMENT}"))
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    broken = [e for e in kept(spool) if e.offset <= at < e.offset + e.size]
    for entry in kept(spool):
        expected = None if entry in broken else frames(entry.first)
        assert spool.read(entry) == expected
    assert [e.reason for e in broken] == [DropReason.SPOOL_BROKEN]
    spool.close()


def test_a_torn_end_is_what_a_crash_leaves_and_the_rest_is_adopted(tmp_path):
    folder = tmp_path / "s"
    spool = Spool(folder, 10**7, b"hello")
    fill(spool, 10)
    spool._close_current()
    spool._lock.close()
    path = next(folder.glob(f"*{SEGMENT}"))
    path.write_bytes(path.read_bytes()[:-5])
    assert list(abandoned(tmp_path)) == [folder]
    adopted = Spool(folder, 10**7)
    assert adopted.hello == b"hello"
    assert [e.first for e in kept(adopted)] == [i * 4 for i in range(9)]
    assert read(adopted, 8 * 4) == frames(8 * 4)
    # It goes on in a new segment, never inside an old one.
    adopted.append(40, 4, frames(40))
    assert len(list(folder.glob(f"*{SEGMENT}"))) == 2
    adopted.close()


def test_a_living_process_keeps_its_spool(tmp_path):
    spool = Spool(tmp_path / "s", 10**6, b"hello")
    fill(spool, 1)
    assert list(abandoned(tmp_path)) == []
    with pytest.raises(UserError, match="in use"):
        Spool(tmp_path / "s", 10**6, b"hello")
    spool.close()
    assert (tmp_path / "s" / HELLO).exists()


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be used"):
        Spool(tmp_path / "file" / "s", 10**6, b"hello")


@given(st.lists(st.tuples(st.integers(1, 5), st.booleans()), max_size=30), st.integers(0, 160))
def test_the_index_finds_every_row(parts, asked):
    index = Index()
    owner = {}
    at = 0
    for rows, lost in parts:
        entry = Entry(at, at + rows, DropReason.OVERRUN if lost else None)
        index.append(entry)
        for seq in range(at, at + rows):
            owner[seq] = lost
        at += rows
    found = index.at(asked)
    if asked in owner:
        assert found is not None
        assert found.first <= asked < found.end
        assert (found.reason is not None) == owner[asked]
    else:
        assert found is None
    done = index.release(asked)
    assert all(one.end <= asked for one in done)
    assert index.at(asked) is (found if asked in owner else None)


def test_memory_is_bounded_and_given_back():
    store = MemoryStore(1000)
    i = 0
    while store.has_room():
        store.append(i, 1, frames(i))
        i += 1
    assert 1000 <= store.nbytes < 1200
    store.release(i)
    assert store.nbytes == 0


# -- over real sockets -----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["spool", "block"])
def test_nothing_is_missing_after_the_service_died(tmp_path, mode):
    options = {"on_full": mode}
    if mode == "spool":
        options["spool"] = tmp_path
    first = Service()
    endpoint = first.endpoint
    tap = make(endpoint, **options)
    publish(tap, 100, pause=0.001)
    assert until(lambda: tap.stats().link.acknowledged == 100)
    first.processing = False
    publish(tap, 100, 100, pause=0.001)
    first.close()
    publish(tap, 100, 200, pause=0.001)
    with Service(endpoint) as second:
        publish(tap, 100, 300, pause=0.001)
        assert until(lambda: tap.stats().link.acknowledged == 400, 20)
        tap.close()
        stats = tap.stats()
        counts = second.hub.counts(tap.boot_id)
        seq = second.column("seq")
        values = second.column("x:h")[:, 0]
    assert balanced(stats)
    assert stats.link.lost == {}
    # All that the first service had not finished comes again, once and in order.
    assert seq.tolist() == list(range(seq[0], 400))
    assert seq[0] <= 100
    assert values.tolist() == seq.tolist()
    assert counts.undeclared == 0
    assert list(tmp_path.iterdir()) == []


def test_a_spool_waits_for_a_service_that_is_not_there_yet(tmp_path):
    with Service() as early:
        endpoint = early.endpoint
    tap = make(endpoint, on_full="spool", spool=tmp_path, max_steps=64)
    publish(tap, 2000, pause=0.0002)
    assert until(lambda: tap.stats().link.spooled_bytes > 0)
    with Service(endpoint) as service:
        assert until(lambda: tap.stats().link.acknowledged == 2000, 20)
        tap.close()
        assert service.column("seq").tolist() == list(range(2000))
    assert tap.stats().link.lost == {}
    assert list(tmp_path.iterdir()) == []


def test_a_full_spool_never_stops_the_agent_and_its_loss_is_declared(tmp_path):
    tap = make(UNUSED, on_full="spool", spool=tmp_path, spool_bytes=100_000)
    publish(tap, 3000, pause=0.0002)
    assert until(lambda: "full" in tap.stats().link.last_error)
    assert tap.stats().faults == 0
    tap.close(0.2)
    size = sum(path.stat().st_size for path in tmp_path.rglob(f"*{SEGMENT}"))
    assert 50_000 < size <= 100_000
    final = tap.stats()
    assert balanced(final)
    # The next process on the folder delivers what there is and declares the rest.
    with Service() as service:
        heir = make(service.endpoint, on_full="spool", spool=tmp_path)
        publish(heir, 10)
        assert until(lambda: tap.boot_id in service.goodbyes, 20)
        heir.close()
        counts = service.hub.counts(tap.boot_id)
        old = service.column("seq", tap.boot_id)
        assert len(service.column("seq", heir.boot_id)) == 10
    assert old.tolist() == list(range(len(old)))
    assert len(old) > 100
    assert counts.undeclared == 0
    assert counts.declared == {DropReason.SPOOL_FULL: 3000 - len(old)}
    assert list(tmp_path.iterdir()) == []


CRASHING_AGENT = """
import os, sys, time
from interlatent_live import Tap
from interlatent_live.stream import HookPointSpec

tap = Tap(["i"], hook_points=(HookPointSpec("h", 3, 2),), endpoint=sys.argv[1], on_full="spool",
          spool=sys.argv[2], strict=True)
for i in range(500):
    tap.publish({"i": i}, {"h": [i, i, i]}, {"h": [i, i]})
    time.sleep(0.0005)
time.sleep(0.2)
os._exit(1)
"""


def test_rows_of_a_process_that_crashed_are_delivered_by_the_next(tmp_path):
    with Service() as service:
        service.processing = False
        arguments = [sys.executable, "-c", CRASHING_AGENT, service.endpoint, str(tmp_path)]
        assert subprocess.run(arguments, timeout=60, check=False).returncode == 1
        (old,) = (folder.name for folder in abandoned(tmp_path))
        assert service.manifests[old].boot_id == old
    with Service() as service:
        tap = make(service.endpoint, on_full="spool", spool=tmp_path)
        publish(tap, 1)
        assert until(lambda: old in service.goodbyes, 20)
        tap.close()
        seq = service.column("seq", old)
    assert seq.tolist() == list(range(len(seq)))
    assert len(seq) >= 450
    assert list(tmp_path.iterdir()) == []


def test_blocking_waits_for_room_and_gives_up_with_a_sentence():
    tap = make(UNUSED, on_full="block", max_steps=32, max_bytes=4000, block_timeout_s=0.3)
    with pytest.raises(UserError, match="on_full is 'block'"):
        publish(tap, 5000)
    tap.close(0.1)


def test_blocking_loses_nothing_however_fast_the_agent_is():
    with Service(window_steps=256, window_bytes=64 * 1024, least_bytes=4096) as service:
        tap = make(service.endpoint, on_full="block", max_steps=64)
        publish(tap, 5000)
        tap.close(10.0)
        assert balanced(tap.stats())
        assert tap.stats().link.lost == {}
        assert tap.stats().link.acknowledged == 5000
        assert service.column("seq").tolist() == list(range(5000))

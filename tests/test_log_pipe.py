from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time

import pytest

from interlatent_live.log_pipe import CHUNK, PipeHandler, is_pipe

ROOM = 64 * 1024


@pytest.fixture
def pipe():
    read, write = os.pipe()
    os.set_blocking(read, False)
    yield read, write
    for fd in (read, write):
        try:
            os.close(fd)
        except OSError:
            continue


def record(text):
    return logging.makeLogRecord({"msg": text, "levelno": logging.INFO, "levelname": "INFO"})


def taken(read):
    """All that is in the pipe now."""
    found = b""
    while True:
        try:
            found += os.read(read, 1 << 20)
        except BlockingIOError:
            return found


def drained(read):
    return taken(read).decode().splitlines()


def test_what_is_read_is_what_was_logged(pipe):
    read, write = pipe
    handler = PipeHandler(write)
    lines = [f"event {number}" for number in range(100)]
    for line in lines:
        handler.handle(record(line))
    assert drained(read) == lines
    assert handler.dropped == 0


def test_a_full_pipe_is_not_waited_for_and_the_count_is_said_once_there_is_room(pipe):
    read, write = pipe
    handler = PipeHandler(write)
    began = time.monotonic()
    for number in range(5000):
        handler.handle(record(f"event {number:06d} " + "x" * 100))
    assert time.monotonic() - began < 5
    before = drained(read)
    lost = handler.dropped
    assert lost == 5000 - len(before) > 4000
    handler.handle(record("back"))
    handler.handle(record("again"))
    said, back, again = drained(read)
    assert said.startswith(f"{lost} events of this log were dropped")
    assert (back, again) == ("back", "again")
    assert handler.dropped == 0


def test_lines_stay_whole_however_long_they_are_and_whenever_room_comes(pipe):
    read, write = pipe
    handler = PipeHandler(write)
    lengths = [1, CHUNK - 1, CHUNK, 3 * CHUNK, ROOM + 5, 2 * ROOM, 17] * 4
    given = [chr(97 + number % 26) * length for number, length in enumerate(lengths)]
    text = b""
    for line in given:
        handler.handle(record(line))
        text += os.read(read, 30_000)
    for _ in range(20):
        handler.flush()
        text += taken(read)
    said = [line for line in text.decode().split("\n") if "of this log were dropped" in line]
    rest = [line for line in text.decode().split("\n")[:-1] if line not in said]
    counts = [int(line.partition(" ")[0]) for line in said]
    assert set(rest) <= set(given)
    assert len(rest) + sum(counts) + handler.dropped == len(given)
    assert 0 < len(rest) < len(given)


def test_a_reader_that_is_gone_costs_the_events_and_nothing_else(pipe):
    read, write = pipe
    handler = PipeHandler(write)
    os.close(read)
    for _ in range(3):
        handler.handle(record("nobody"))
    assert handler.dropped == 3


def test_threads_do_not_mix_their_lines(pipe):
    read, write = pipe
    handler = PipeHandler(write)
    words = ["a" * 50, "b" * 700, "c" * 20]

    def speak(word):
        for _ in range(20):
            handler.handle(record(word))

    threads = [threading.Thread(target=speak, args=(word,)) for word in words]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert sorted(drained(read)) == sorted(words * 20)


def test_only_a_pipe_is_one(tmp_path, pipe):
    with (tmp_path / "file").open("w") as file, os.fdopen(os.dup(pipe[1]), "w") as end:
        assert not is_pipe(file)
        assert is_pipe(end)


CHATTERBOX = """
from interlatent_live.logs import configure_logging, get_logger
configure_logging("test")
log = get_logger("test")
for number in range(3000):
    log.warning("said", number=number, text="y" * 100)
open({done!r}, "w").close()
input()
log.warning("last")
"""


def test_a_process_whose_log_nobody_reads_goes_on(tmp_path):
    done = tmp_path / "done"
    child = subprocess.Popen(
        [sys.executable, "-c", CHATTERBOX.format(done=str(done))],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with child:
        deadline = time.monotonic() + 60
        while not done.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert done.exists(), "it waits for a reader"
        first = os.read(child.stderr.fileno(), 2 * ROOM).decode().splitlines()
        child.stdin.write("\n")
        child.stdin.close()
        rest = child.stderr.read().splitlines()
    events = [json.loads(line) for line in first + rest]
    assert [one["number"] for one in events[: len(first)]] == list(range(len(first)))
    said, last = (one["event"] for one in events[len(first) :])
    assert said.startswith(f"{3000 - len(first)} events of this log were dropped")
    assert last == "last"

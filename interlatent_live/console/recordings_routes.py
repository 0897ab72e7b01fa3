"""Recordings over HTTP: ``/api/v1/recordings``, read-only, for whoever may look.

What is read is read in a process of its own (:mod:`~interlatent_live.console.recordings_worker`),
one request after another. A request that takes too long ends the process, and the next one begins
it anew; more than a few that wait are refused.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Query, Response

from interlatent_live.console.access import DeniedError
from interlatent_live.console.recordings_worker import HEAD

if TYPE_CHECKING:
    from pathlib import Path

MOST_WAITING: Final = 8
WITHIN_S: Final = 30.0
LARGEST: Final = 64 * 2**20
"""Bytes of one answer."""
HEAD_TYPE: Final = "application/vnd.interlatent.points"
Text = Annotated[str, Query(max_length=256)]
Time = Annotated[float, Query(ge=0, le=1e9)]
Copy = Annotated[int, Query(ge=0, lt=2**16)]


class RecordingReader:
    """The way to the process that reads; safe to use from several threads, which wait in turn.

    Args:
        folder: of the recordings.
        within_s: time after which an answer is no longer waited for.
    """

    def __init__(self, folder: Path, within_s: float = WITHIN_S) -> None:
        self._folder = folder
        self._within_s = within_s
        self._lock = threading.Lock()
        self._waiting = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    def ask(self, request: dict[str, Any]) -> tuple[int, bytes, bytes]:
        """Status, JSON and body.

        Raises:
            DeniedError: 503 ``busy`` when too many wait, 504 when the answer took too long.
        """
        if self._waiting >= MOST_WAITING:
            raise DeniedError(503, "busy", "too many wait for recordings to be read; ask again")
        self._waiting += 1
        try:
            with self._lock:
                return self._asked(msgspec.json.encode(request) + b"\n")
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """End the process."""
        self._closed = True
        self._end()

    def _asked(self, line: bytes) -> tuple[int, bytes, bytes]:
        deadline = time.monotonic() + self._within_s
        for fresh in (False, True):
            process = self._started(fresh=fresh)
            try:
                return self._exchange(process, line, deadline)
            except (BrokenPipeError, EOFError):
                self._end()  # it had ended, having nothing to do; once more
        raise DeniedError(503, "reading", "the process that reads recordings has ended; ask again")

    def _started(self, *, fresh: bool) -> subprocess.Popen[bytes]:
        if self._closed:
            raise DeniedError(503, "ending", "the console is ending")
        if fresh or self._process is None or self._process.poll() is not None:
            self._end()
            self._process = subprocess.Popen(  # noqa: S603 - our own module, a folder of the settings
                [
                    sys.executable, "-m", "interlatent_live.console.recordings_worker",
                    str(self._folder),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        return self._process

    def _exchange(
        self, process: subprocess.Popen[bytes], line: bytes, deadline: float
    ) -> tuple[int, bytes, bytes]:
        assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018 - pipes
        process.stdin.write(line)
        process.stdin.flush()
        head = self._read(process.stdout.fileno(), HEAD.size, deadline)
        status, said, body = HEAD.unpack(head)
        if said + body > LARGEST:
            self._end()
            raise DeniedError(500, "reading", "the answer is larger than an answer may be")
        data = self._read(process.stdout.fileno(), said + body, deadline)
        return status, data[:said], data[said:]

    def _read(self, fd: int, size: int, deadline: float) -> bytes:
        parts, missing = [], size
        while missing:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([fd], [], [], left)[0]:
                self._end()
                raise DeniedError(
                    504, "slow", f"the recording could not be read within {self._within_s:g} s"
                )
            part = os.read(fd, min(missing, 1 << 20))
            if not part:
                raise EOFError
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


NONE: Final = b'{"folder":null,"items":[]}'


def router(reader: RecordingReader | None) -> APIRouter:
    """The routes; without a reader there are no recordings, which is an answer too."""
    if reader is not None:
        return _router(reader)
    out = APIRouter(tags=["recordings"], default_response_class=Response)

    @out.get("/recordings", summary="No folder of recordings is configured")
    async def none() -> Response:
        return Response(NONE, media_type="application/json")

    return out


def _router(reader: RecordingReader) -> APIRouter:
    """The routes. Plain functions, which FastAPI runs on its threads: they wait for the process."""
    out = APIRouter(tags=["recordings"], default_response_class=Response)

    def asked(ask: str, **fields: Any) -> Response:
        status, said, _ = reader.ask({"ask": ask, **fields})
        return Response(said, status, media_type="application/json")

    @out.get("/recordings", summary="The recordings in the console's folder, newest first")
    def listing() -> Response:
        return asked("listing")

    @out.get("/recordings/{name}", summary="One recording: how long it is, and its streams")
    def described(name: str) -> Response:
        return asked("described", name=name)

    @out.get("/recordings/{name}/steps", summary="Points of one copy between two times, binary")
    def steps(  # noqa: PLR0917 - called by name
        name: str,
        run_id: Text,
        hook_point: Text,
        env: Copy = 0,
        from_s: Time = 0.0,
        to_s: Time = 60.0,
        points: Annotated[int, Query(ge=1, le=100_000)] = 3600,
    ) -> Response:
        status, said, body = reader.ask(
            {
                "ask": "steps", "name": name, "run_id": run_id, "hook_point": hook_point,
                "env": env, "from_s": from_s, "to_s": to_s, "points": points,
            }
        )  # fmt: skip
        if status != 200:
            return Response(said, status, media_type="application/json")
        return Response(len(said).to_bytes(4, "little") + said + body, media_type=HEAD_TYPE)

    @out.get("/recordings/{name}/words", summary="What was claimed and narrated between two times")
    def words(
        name: str, run_id: Text, hook_point: Text, from_s: Time = 0.0, to_s: Time = 60.0
    ) -> Response:
        return asked(
            "words", name=name, run_id=run_id, hook_point=hook_point, from_s=from_s, to_s=to_s
        )

    @out.get("/recordings/{name}/picture", summary="The newest picture until a time, as JPEG")
    def picture(name: str, run_id: Text, env: Copy = 0, at_s: Time = 0.0) -> Response:
        status, said, body = reader.ask(
            {"ask": "picture", "name": name, "run_id": run_id, "env": env, "at_s": at_s}
        )
        if status != 200:
            return Response(b"" if status == 204 else said, status, media_type="application/json")
        at = msgspec.json.decode(said)["at"]
        return Response(body, headers={"At": f"{at:.3f}"}, media_type="image/jpeg")

    @out.get("/recordings/{name}/moments", summary="Moments like one: a predicate, a feature, both")
    def moments(  # noqa: PLR0917 - called by name
        name: str,
        run_id: Text,
        hook_point: Text = "",
        env: Annotated[int | None, Query(ge=0, lt=2**16)] = None,
        predicate: Annotated[str, Query(max_length=1000)] = "",
        feature: Annotated[int | None, Query(ge=0, lt=2**31)] = None,
        above: Annotated[float, Query(ge=0, le=1e30)] = 0.0,
        from_s: Time = 0.0,
        limit: Annotated[int, Query(ge=1, le=500)] = 100,
    ) -> Response:
        return asked(
            "moments", name=name, run_id=run_id, hook_point=hook_point, env=env,
            predicate=predicate, feature=feature, above=above, from_s=from_s, limit=limit,
        )  # fmt: skip

    return out

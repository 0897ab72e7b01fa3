"""The wire's test vectors: known messages, their bytes, and what a reader must make of them.

``python -m tests.support.wire_vectors`` writes tests/vectors/ anew; a test compares each byte.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack  # type: ignore[import-untyped] # the package ships no types
import numpy as np

from interlatent_live.recordings.framing import join_frames
from interlatent_live.stream import (
    Activations,
    FeatureBatch,
    HookPointSpec,
    Manifest,
    MetricSpec,
    Role,
    SparseCodes,
    StepBatch,
    Steps,
)
from interlatent_live.wire.codec import (
    encode,
    encode_document,
    encode_features,
    encode_hello,
    encode_steps,
)
from interlatent_live.wire.messages import (
    Ack,
    Bye,
    Drop,
    DropReason,
    Heartbeat,
    Picture,
    Range,
    Refuse,
    Stats,
    StreamAck,
    Welcome,
)
from interlatent_live.wire.tensors import DTYPES

FOLDER = Path(__file__).resolve().parents[1] / "vectors"
T0 = 1_767_225_600_000_000_000


@dataclass(frozen=True)
class Vector:
    """A message by name; ``refusal`` is the reason a reader gives, ``""`` when it must accept."""

    name: str
    note: str
    frames: list[bytes]
    refusal: str = ""

    def described(self) -> dict[str, Any]:
        """What the JSON file says of it."""
        out: dict[str, Any] = {
            "name": self.name,
            "note": self.note,
            "frames": [frame.hex() for frame in self.frames],
        }
        if self.refusal:
            return {**out, "refusal": self.refusal}
        header = msgpack.unpackb(self.frames[0])
        out["header"] = header
        if "t" in header:
            out["tensors"] = _tensors(header["t"], self.frames[1])
        elif header["kind"] == "document":
            out["payload"] = msgpack.unpackb(self.frames[1])
        return out


def vectors() -> list[Vector]:
    """Every vector, accepted ones first."""
    return [*_accepted(), *_refused()]


def files() -> dict[str, bytes]:
    """Contents of tests/vectors/ by file name."""
    made = vectors()
    described = json.dumps([one.described() for one in made], indent=1, ensure_ascii=True) + "\n"
    out = {"wire-v1.json": described.encode()}
    out.update({f"{one.name}.bin": join_frames(one.frames) for one in made})
    return out


MANIFEST = Manifest(
    agent="lander",
    run_id="run-1",
    boot_id="boot-1",
    policy_hash="sha256:00ff",
    hook_points=(HookPointSpec("body.0", 3, 2), HookPointSpec("corps.é", 1, 1)),
    metrics=(
        MetricSpec("x", "m", Role.STATE, "where it is"),
        MetricSpec("reward", "", Role.OUTCOME),
    ),
    env_count=2,
    control_hz=50.0,
    environment="LunarLander-v3",
    actions=("idle", "left", "main", "right"),
)


def _columns(rows: int, first: int) -> Steps:
    numbers = np.arange(rows)
    metrics = np.stack([numbers / 4 - 1, np.full(rows, math.nan)], axis=1)
    return Steps(
        first_seq=first,
        env=(numbers % 2).astype(np.uint16),
        episode=np.full(rows, 7, np.uint32),
        t=(numbers + 100).astype(np.uint32),
        time_ns=(T0 + 20_000_000 * numbers).astype(np.int64),
        controller=(numbers % 4).astype(np.uint8),
        flags=np.where(numbers == rows - 1, 2, 0).astype(np.uint8),
        metrics=metrics,
    )


def _steps_batch(rows: int) -> StepBatch:
    x = (np.arange(rows * 3).reshape(rows, 3) / 8 - 1).astype(np.float32)
    y = np.array([[0.5, -2.0]], np.float32)
    narrow = np.array([[k / 2] for k in range(rows)], np.float32)
    return StepBatch(
        _columns(rows, 1000),
        {
            "body.0": Activations(x, y, np.array([rows - 1], np.uint16)),
            "corps.é": Activations(narrow, narrow, np.arange(rows, dtype=np.uint16)),
        },
    )


def _feature_batch() -> FeatureBatch:
    codes = SparseCodes(
        n_features=512,
        indptr=np.array([0, 2, 2, 3], np.uint32),
        index=np.array([3, 511, 0], np.uint32),
        value=np.array([0.25, 1.5, 1e-38], np.float32),
        error=np.array([0.125, math.nan, 0.0], np.float32),
        error_affine=np.array([0.5, math.nan, math.nan], np.float32),
    )
    return FeatureBatch(
        "run-1", "boot-1", _columns(3, 0), {"body.0": codes}, {"body.0": "sha256:abcd"}, T0 + 1
    )


def _accepted() -> list[Vector]:
    ledger: dict[str, Any] = {
        "boot_id": "boot-1",
        "next_seq": 1003,
        "sent": 1003,
        "acknowledged": 900,
        "lost": {DropReason.OVERRUN: 60, DropReason.PEER_LOST: 40},
        "in_flight": 3,
        "used_steps": 943,
        "used_bytes": 123_456,
        "sent_ns": T0,
    }
    drops = [Drop(990, 7, DropReason.OVERRUN), Drop(997, 3, DropReason.AGE)]
    return [
        Vector(
            "hello",
            "an agent opens a stream",
            encode_hello(MANIFEST, first_seq=0, sent_ns=T0),
        ),
        Vector(
            "hello-features",
            "an encoder opens the same stream, from row 64 on",
            encode_hello(
                MANIFEST,
                first_seq=64,
                sent_ns=T0,
                transcoders={"body.0": "sha256:abcd"},
                lossless=True,
            ),
        ),
        Vector(
            "welcome",
            "credit, and a hole from before",
            encode(
                Welcome(
                    boot_id="boot-1",
                    server="encoder",
                    credit_steps=65_536,
                    credit_bytes=4_194_304,
                    max_rows=4096,
                    max_bytes=4_194_304,
                    received=64,
                    missing=(Range(10, 2),),
                    echo_ns=T0,
                    sent_ns=T0 + 5,
                )
            ),
        ),
        Vector(
            "refuse",
            "no transcoder for this policy; ask again in ten seconds",
            encode(
                Refuse(
                    boot_id="boot-1",
                    reason="policy",
                    message="no transcoder was trained on sha256:00ff",
                    retry_ms=10_000,
                    sent_ns=T0,
                )
            ),
        ),
        Vector(
            "steps",
            "three rows, two hook points, y of the last row only, declared drops",
            encode_steps(_steps_batch(3), boot_id="boot-1", drops=drops, sent_ns=T0 + 7),
        ),
        Vector(
            "steps-half",
            "the same in float16",
            encode_steps(_steps_batch(3), boot_id="boot-1", sent_ns=T0, activations="f2"),
        ),
        Vector(
            "steps-bfloat16",
            "the same in bfloat16",
            encode_steps(_steps_batch(3), boot_id="boot-1", sent_ns=T0, activations="bf2"),
        ),
        Vector(
            "steps-one-row",
            "one row, and padding between all tensors",
            encode_steps(_steps_batch(1), boot_id="boot-1", sent_ns=T0),
        ),
        Vector(
            "steps-metrics-only",
            "no hook point",
            encode_steps(StepBatch(_columns(2, 0), {}), boot_id="boot-1"),
        ),
        Vector("features", "three rows, the second empty", encode_features(_feature_batch())),
        Vector(
            "ack",
            "two streams, one with a hole",
            encode(
                Ack(
                    streams=(
                        StreamAck(
                            boot_id="boot-1",
                            received=1003,
                            processed=1003,
                            missing=(Range(500, 64),),
                            rows_received=839,
                            rows_declared=100,
                            rows_undeclared=64,
                            rows_duplicate=3,
                        ),
                        StreamAck(
                            boot_id="boot-2",
                            received=0,
                            processed=0,
                            rows_received=0,
                            rows_declared=0,
                            rows_undeclared=0,
                            rows_duplicate=0,
                        ),
                    ),
                    credit_steps=66_479,
                    credit_bytes=4_317_760,
                    echo_ns=T0,
                    echo_received_ns=T0 + 100,
                    sent_ns=T0 + 200,
                )
            ),
        ),
        Vector("heartbeat", "still here", encode(Heartbeat(sent_ns=T0))),
        Vector(
            "stats",
            "the sender's ledger, with a clock offset",
            encode(Stats(**ledger, drops=tuple(drops), offset_ns=-250)),
        ),
        Vector("bye", "the final ledger", encode(Bye(**{**ledger, "in_flight": 3}))),
        Vector(
            "document",
            "a document of the feed",
            encode_document(
                "claims",
                {"label": "é", "score": 0.875, "p": None, "n": -3, "live": True, "tags": ["a", {}]},
                source="explainer",
                seq=41,
                sent_ns=T0,
            ),
        ),
        Vector(
            "frame",
            "reserved: a picture",
            encode(Picture("boot-1", 1001, 1, 2, 2, b"\xff\xd8\xff\xd9", T0)),
        ),
    ]


def _refused() -> list[Vector]:
    head, body = encode_steps(_steps_batch(3), boot_id="boot-1", sent_ns=T0)
    fields = msgpack.unpackb(head)

    def changed(name: str, note: str, refusal: str, **changes: Any) -> Vector:
        packed = msgpack.packb({**fields, **changes})
        return Vector(f"refused-{name}", note, [packed, body], refusal)

    foreign = [["env", "O", [3]], *fields["t"][1:]]
    missing = msgpack.packb({key: value for key, value in fields.items() if key != "seq"})
    return [
        Vector("refused-no-map", "the header is an array", [b"\x90"], "header"),
        Vector("refused-truncated", "the header ends early", [head[:-1], body], "header"),
        Vector("refused-three-frames", "one frame too many", [head, body, b""], "frames"),
        Vector("refused-no-body", "steps without a body", [head], "frames"),
        Vector("refused-missing-field", "no seq", [missing, body], "schema"),
        Vector("refused-long-body", "one byte too many", [head, body + b"\0"], "length"),
        Vector("refused-short-body", "one byte too few", [head, body[:-1]], "length"),
        changed("version", "a later version", "version", v=2),
        changed("kind", "an unknown kind", "kind", kind="step"),
        changed("field", "an unknown field", "schema", hello=1),
        changed("name", "an escape sequence in a name", "schema", boot="\x1b[2J"),
        changed("negative", "a negative number", "schema", seq=-1),
        changed("dtype", "a dtype that is none", "dtype", t=foreign),
        changed("rows", "n is not the tensors' number of rows", "shape", n=4),
        changed("hooks", "a hook point without tensors", "tensor", hooks=["a", "b", "c"]),
        changed("reason", "a reason that is none", "schema", drops=[[0, 1, "boredom"]]),
    ]


def _tensors(specs: list[Any], body: bytes) -> dict[str, Any]:
    out = {}
    offset = 0
    for name, word, shape in specs:
        offset += -offset % 8
        dtype = DTYPES[word]
        count = math.prod(shape)
        array = np.frombuffer(body[offset : offset + count * dtype.itemsize], dtype)
        offset += count * dtype.itemsize
        values = array.reshape(shape).tolist()
        out[name] = json.loads(json.dumps(values), parse_constant=str)
    return out


def main() -> None:
    """Write the folder anew."""
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.iterdir():
        old.unlink()
    for name, content in files().items():
        (FOLDER / name).write_bytes(content)


if __name__ == "__main__":
    main()

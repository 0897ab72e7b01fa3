from __future__ import annotations

import math
from dataclasses import fields, is_dataclass

import msgpack  # type: ignore[import-untyped] # the package ships no types
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlatent_live.errors import WireError
from interlatent_live.stream import (
    Activations,
    FeatureBatch,
    HookPointSpec,
    Manifest,
    MetricSpec,
    SparseCodes,
    StepBatch,
    steps_without_columns,
)
from interlatent_live.wire.codec import (
    ManifestCheck,
    check_against,
    decode,
    encode,
    encode_document,
    encode_features,
    encode_hello,
    encode_message,
    encode_steps,
    kind_of,
)
from interlatent_live.wire.limits import Limits
from interlatent_live.wire.messages import (
    Ack,
    Bye,
    Document,
    Drop,
    DropReason,
    FeaturesMessage,
    Heartbeat,
    Hello,
    Picture,
    Range,
    Refuse,
    Stats,
    StepsMessage,
    StreamAck,
    Welcome,
    WireMessage,
)
from tests.support.wire_strategies import (
    DOCUMENTS,
    DROPS,
    NAMES,
    SEQ,
    features_messages,
    manifests,
    steps_messages,
)

MANIFEST = Manifest(
    agent="lander",
    run_id="run",
    boot_id="boot",
    policy_hash="sha256:00",
    hook_points=(HookPointSpec("body.0", 3, 2),),
    metrics=(MetricSpec("x", "m"), MetricSpec("v", "m/s")),
    env_count=2,
)


def same(left, right):
    """Equality that looks into arrays bit by bit and into nested values."""
    if isinstance(left, np.ndarray):
        return (
            left.shape == right.shape
            and left.dtype == right.dtype
            and left.tobytes() == right.tobytes()
        )
    if is_dataclass(left):
        return type(left) is type(right) and all(
            same(getattr(left, f.name), getattr(right, f.name)) for f in fields(left) if f.compare
        )
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    return left == right


def steps_batch(rows=4, dtype=np.float32):
    steps = steps_without_columns(rows, 2, first_seq=10)
    seen = Activations(
        np.ones((rows, 3), dtype), np.ones((rows, 2), dtype), np.arange(rows, dtype=np.uint16)
    )
    return StepBatch(steps, {"body.0": seen})


def feature_batch():
    codes = SparseCodes(
        n_features=8,
        indptr=np.array([0, 2, 2, 3, 4], np.uint32),
        index=np.array([1, 5, 5, 0], np.uint32),
        value=np.ones(4, np.float32),
        error=np.zeros(4, np.float32),
        error_affine=np.full(4, np.nan, np.float32),
    )
    steps = steps_without_columns(4, 2, first_seq=10)
    return FeatureBatch("run", "boot", steps, {"body.0": codes}, {"body.0": "sha256:11"}, 5)


def altered(frames, **changes):
    header = msgpack.unpackb(frames[0])
    header.update(changes)
    return [msgpack.packb(header), *frames[1:]]


def read_steps(frames):
    message = decode(frames)
    assert isinstance(message, StepsMessage)
    return message


def refusal(frames, limits=None):
    with pytest.raises(WireError) as caught:
        decode(frames, *([limits] if limits else []))
    assert str(caught.value)
    return caught.value.reason


@given(steps_messages())
def test_steps_come_back_bit_by_bit(message):
    frames = encode(message)
    assert len(frames) == 2
    assert same(decode(frames), message)


@given(features_messages())
def test_features_come_back_bit_by_bit(message):
    assert same(decode(encode(message)), message)


@given(manifests(), SEQ, SEQ)
def test_hello_comes_back(manifest, first_seq, sent_ns):
    transcoders = {hook.name: "sha256:1" for hook in manifest.hook_points}
    frames = encode_hello(manifest, first_seq=first_seq, sent_ns=sent_ns, transcoders=transcoders)
    hello = decode(frames)
    assert isinstance(hello, Hello)
    assert hello.manifest == manifest
    assert (hello.first_seq, hello.sent_ns) == (first_seq, sent_ns)
    assert dict(hello.transcoders or {}) == transcoders


@given(DOCUMENTS)
def test_documents_come_back(document):
    assert decode(encode(document)) == document


@given(NAMES, SEQ, SEQ, DROPS, st.sampled_from(DropReason))
def test_plain_messages_come_back(name, first, second, drops, reason):
    ranges = (Range(first, 3), Range(second, 1))
    stream = StreamAck(
        boot_id=name,
        received=first,
        processed=second,
        missing=ranges,
        rows_received=1,
        rows_declared=2,
        rows_undeclared=3,
        rows_duplicate=4,
    )
    ledger = {
        "boot_id": name,
        "next_seq": first,
        "sent": 9,
        "acknowledged": 5,
        "lost": {reason: 3},
        "in_flight": 1,
        "drops": drops,
        "used_steps": 7,
        "used_bytes": 8,
        "offset_ns": -5,
        "sent_ns": second,
    }
    messages: list[WireMessage] = [
        Welcome(
            boot_id=name,
            server=name,
            credit_steps=first,
            credit_bytes=second,
            max_rows=64,
            max_bytes=1 << 20,
            received=first,
            missing=ranges,
            echo_ns=first,
            sent_ns=second,
        ),
        Refuse(boot_id=name, reason="policy", message=name, retry_ms=100, sent_ns=first),
        Ack(
            streams=(stream,),
            credit_steps=first,
            credit_bytes=second,
            echo_ns=first,
            echo_received_ns=second,
            sent_ns=second,
        ),
        Stats(**ledger),
        Bye(**ledger),
        Heartbeat(sent_ns=first),
        Picture(name, first, 1, 4, 4, b"\xff\xd8rest", second),
    ]
    for message in messages:
        read = decode(encode(message))
        assert type(read) is type(message)
        assert read == message


def test_arrays_are_read_only_views_of_the_body():
    frames = encode_steps(steps_batch(), boot_id="boot")
    message = read_steps([frames[0], memoryview(bytearray(frames[1]))])
    seen = message.batch.activations["body.0"]
    for array in (seen.x, seen.y, seen.y_rows, message.batch.steps.metrics):
        assert not array.flags.writeable
        assert not array.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        seen.x[0, 0] = 1


def test_body_may_be_any_contiguous_buffer():
    head, body = encode_steps(steps_batch(), boot_id="boot")
    shifted = memoryview(b"\0" + body)[1:]
    for form in (body, bytearray(body), memoryview(body), memoryview(bytearray(body)), shifted):
        assert same(
            read_steps([memoryview(head), form]).batch.steps, read_steps([head, body]).batch.steps
        )
    assert refusal([head, memoryview(body + body)[::2]]) == "frames"


def test_bfloat16_rounds_to_even_and_widens_exactly():
    torch = pytest.importorskip("torch")
    values = np.array(
        [1.0, 1.00390625, 1.01171875, -3.3e38, 1e-40, np.inf, -np.inf, np.nan, 0.1, -0.0],
        np.float32,
    )
    noise = np.random.default_rng(0).normal(size=500).astype(np.float32)
    values = np.concatenate([values, noise])[:, None]
    rows = len(values)
    seen = Activations(values, values, np.arange(rows, dtype=np.uint16))
    batch = StepBatch(steps_without_columns(rows, 0), {"h": seen})
    read = read_steps(encode_steps(batch, boot_id="b", activations="bf2")).batch.activations["h"].x
    expected = torch.from_numpy(values).bfloat16().float().numpy()
    assert np.array_equal(read, expected, equal_nan=True)
    assert read.dtype == np.float32
    assert not read.flags.writeable


def test_a_sender_may_halve_its_activations():
    batch = steps_batch()
    full = encode_steps(batch, boot_id="b")
    half = encode_steps(batch, boot_id="b", activations="f2")
    assert len(half[1]) < len(full[1])
    assert read_steps(half).batch.activations["body.0"].x.dtype == np.float16


def test_columns_that_are_not_contiguous_are_copied():
    steps = steps_without_columns(4, 2)
    wide = np.arange(24, dtype=np.float32).reshape(4, 6)
    seen = Activations(wide[:, ::2], wide[::2, 1:3], np.array([0, 3], np.uint16))
    read = read_steps(encode_steps(StepBatch(steps, {"h": seen}), boot_id="b")).batch.activations[
        "h"
    ]
    assert np.array_equal(read.x, wide[:, ::2])
    assert np.array_equal(read.y, wide[::2, 1:3])
    assert read.y_rows.tolist() == [0, 3]


@pytest.mark.parametrize("count", [0, 3])
def test_number_of_frames(count):
    assert refusal([b"\x80"] * count) == "frames"


def test_body_absent_or_unwanted():
    assert refusal(encode_steps(steps_batch(), boot_id="b")[:1]) == "frames"
    assert refusal([*encode_message(Heartbeat(sent_ns=0)), b""]) == "frames"


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\xc1",
        b"\x93\x01\x02\x03",
        b"\x81\xa1v",
        b"\x80\x80",
        b"\xa2\xff\xff",
        b"\x81\xc4\x01v\x01",  # bytes have no place in a header
        b"\x81\xd4\x01\x00\x01",  # nor has an extension type
        b"\x81\x80\x01",  # nor a map as a key
        b"\x91" * 100_000,
        b"\xdf\xff\xff\xff\xff",
    ],
)
def test_headers_that_are_no_map(header):
    assert refusal([header]) == "header"


def test_versions_and_kinds():
    frames = encode_message(Heartbeat(sent_ns=0))
    assert refusal(altered(frames, v=2)) == "version"
    assert refusal(altered(frames, v="1")) == "version"
    assert refusal([msgpack.packb({})]) == "version"
    assert refusal(altered(frames, kind="hallo")) == "kind"
    assert refusal(altered(frames, kind=7)) == "kind"
    assert refusal(altered(frames, kind=["steps"])) == "kind"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"seq": -1}, "schema"),
        ({"seq": 2**63}, "schema"),
        ({"seq": 2**63 - 2}, "value"),
        ({"seq": 1.0}, "schema"),
        ({"seq": True}, "schema"),
        ({"n": 0}, "schema"),
        ({"n": 5}, "shape"),
        ({"boot": ""}, "schema"),
        ({"boot": "a\x1b[2J"}, "schema"),
        ({"boot": "a\n"}, "schema"),
        ({"boot": "a\u202e"}, "schema"),
        ({"boot": "a" * 257}, "schema"),
        ({"extra": 1}, "schema"),
        ({"drops": [[0, 0, "age"]]}, "schema"),
        ({"drops": [[0, 1, "whim"]]}, "schema"),
        ({"drops": [[0, 1, "age", 4]]}, "schema"),
        ({"drops": [[0, 1, "age"]] * 257}, "schema"),
        ({"hooks": []}, "tensor"),
        ({"hooks": ["a", "b"]}, "tensor"),
        ({"t": []}, "schema"),
    ],
)
def test_headers_of_steps(change, reason):
    assert refusal(altered(encode_steps(steps_batch(), boot_id="b"), **change)) == reason


@pytest.mark.parametrize(
    ("number", "spec", "reason"),
    [
        (0, ["env", "O", [4]], "dtype"),
        (0, ["env", "u4", [4]], "dtype"),
        (0, ["t", "u2", [4]], "tensor"),
        (0, ["env", "u2", [3]], "shape"),
        (0, ["env", "u2", [4, 1]], "shape"),
        (0, ["env", "u2", []], "schema"),
        (0, ["env", "u2", [-4]], "schema"),
        (0, ["env", "u2", [4, 1, 1]], "schema"),
        (0, ["env", "u2"], "schema"),
        (6, ["metrics", "f8", [4, 3]], "length"),
        (6, ["metrics", "f8", [4]], "shape"),
        (6, ["metrics", "f8", [4, 2**32 - 1]], "shape"),
        (7, ["0/x", "f8", [4, 3]], "dtype"),
        (7, ["0/x", "f2", [4, 3]], "dtype"),
        (7, ["0/x", "f4", [4, 0]], "shape"),
        (7, ["0/x", "f4", [4, 2**24]], "limit"),
        (7, ["0/x", "f4", [4, 2**32 - 1]], "shape"),
        (8, ["0/y", "f4", [5, 2]], "shape"),
        (8, ["0/y", "f4", [3, 2]], "shape"),
        (9, ["0/rows", "u4", [4]], "dtype"),
        (9, ["1/rows", "u2", [4]], "tensor"),
    ],
)
def test_tensors_of_steps(number, spec, reason):
    frames = encode_steps(steps_batch(), boot_id="b")
    tensors = msgpack.unpackb(frames[0])["t"]
    tensors[number] = spec
    assert refusal(altered(frames, t=tensors)) == reason


@pytest.mark.parametrize(
    ("rows", "reason"), [([0, 1, 1, 3], "value"), ([3, 2, 1, 0], "value"), ([0, 1, 2, 4], "value")]
)
def test_sampled_rows_ascend_within_the_batch(rows, reason):
    batch = steps_batch()
    seen = batch.activations["body.0"]
    bad = StepBatch(batch.steps, {"body.0": Activations(seen.x, seen.y, np.array(rows, np.uint16))})
    assert refusal(encode_steps(bad, boot_id="b")) == reason


@pytest.mark.parametrize(("column", "value"), [("controller", 4), ("flags", 8)])
def test_bytes_with_a_meaning(column, value):
    batch = steps_batch()
    getattr(batch.steps, column)[2] = value
    assert refusal(encode_steps(batch, boot_id="b")) == "value"


@pytest.mark.parametrize("change", [-1, 1])
def test_a_body_of_another_length(change):
    head, body = encode_steps(steps_batch(), boot_id="b")
    assert refusal([head, body[:change] if change < 0 else body + b"\0"]) == "length"


@pytest.mark.parametrize(
    ("part", "values"),
    [
        ("indptr", [0, 2, 2, 3, 5]),
        ("indptr", [1, 2, 2, 3, 4]),
        ("indptr", [0, 3, 2, 3, 4]),
        ("index", [1, 8, 5, 0]),
        ("index", [5, 1, 5, 0]),
        ("index", [5, 5, 5, 0]),
        ("value", [1, 0, 1, 1]),
        ("value", [1, -1, 1, 1]),
        ("value", [1, math.nan, 1, 1]),
        ("value", [1, math.inf, 1, 1]),
    ],
)
def test_sparse_rows_keep_their_contract(part, values):
    batch = feature_batch()
    decode(encode_features(batch))
    array = getattr(batch.codes["body.0"], part)
    array[:] = values
    assert refusal(encode_features(batch)) == "value"


def test_limits_are_the_receivers_choice():
    frames = encode_steps(steps_batch(rows=8), boot_id="b")
    assert refusal(frames, Limits(rows=4)) == "limit"
    assert refusal(frames, Limits(body_bytes=64)) == "limit"
    assert refusal(frames, Limits(header_bytes=64)) == "limit"
    document = encode_document("status", {"a": "b" * 100}, source="s")
    assert refusal(document, Limits(document_bytes=64)) == "limit"
    with pytest.raises(ValueError, match="at least 1"):
        Limits(rows=0)
    with pytest.raises(ValueError, match="65,536"):
        Limits(rows=2**17)


@pytest.mark.parametrize(
    "payload",
    [
        {"a": math.nan},
        {"a": [math.inf]},
        {"a": b"bytes"},
        {1: "a"},
        {"a": {None: 1}},
        [1, 2],
        {"a": 2**63},
    ],
)
def test_documents_hold_only_what_json_can_say(payload):
    with pytest.raises(WireError) as caught:
        encode_document("t", payload, source="s")
    assert caught.value.reason == "document"
    body = msgpack.packb(payload)
    head = {"v": 1, "kind": "document", "topic": "t", "source": "s", "seq": 0, "sent": 0}
    assert refusal([msgpack.packb({**head, "size": len(body)}), body]) == "document"


def test_documents_nest_only_so_deep():
    payload: dict[str, object] = {}
    for _ in range(20):
        payload = {"a": payload}
    with pytest.raises(WireError, match="levels"):
        encode_document("t", payload, source="s")


def test_an_encoder_refuses_what_contradicts_itself():
    batch = feature_batch()
    with pytest.raises(WireError, match="no transcoder hash"):
        encode_features(FeatureBatch("r", "b", batch.steps, batch.codes, {}))
    steps = steps_batch()
    seen = steps.activations["body.0"]
    short = Activations(seen.x[:3], seen.y, seen.y_rows)
    with pytest.raises(WireError, match="shape"):
        encode_steps(StepBatch(steps.steps, {"h": short}), boot_id="b")
    integers = Activations(seen.x.astype(np.int64), seen.y, seen.y_rows)
    with pytest.raises(WireError, match="int64"):
        encode_steps(StepBatch(steps.steps, {"h": integers}), boot_id="b")
    with pytest.raises(WireError, match="f8"):
        encode_steps(steps, boot_id="b", activations="f8")
    with pytest.raises(WireError, match="at most 256"):
        encode_steps(steps, boot_id="b", drops=[Drop(0, 1, DropReason.AGE)] * 257)
    with pytest.raises(WireError) as caught:
        encode_hello(msgspec_replace(MANIFEST, agent="two\nlines"))
    assert caught.value.reason == "schema"


def msgspec_replace(manifest, **changes):
    values = {f.name: getattr(manifest, f.name) for f in fields(manifest)}
    return Manifest(**{**values, **changes})


def test_names_within_a_manifest_are_unique():
    twice = msgspec_replace(MANIFEST, metrics=(MetricSpec("x"), MetricSpec("x")))
    with pytest.raises(WireError, match="twice"):
        encode_hello(twice)
    twice = msgspec_replace(MANIFEST, hook_points=(HookPointSpec("h", 1, 1),) * 2)
    with pytest.raises(WireError, match="twice"):
        encode_hello(twice)
    with pytest.raises(WireError, match="does not name"):
        encode_hello(MANIFEST, transcoders={"elsewhere": "sha256:0"})
    with pytest.raises(WireError, match="hz"):
        encode_hello(msgspec_replace(MANIFEST, control_hz=math.nan))


def test_a_batch_is_held_to_its_manifest():
    good = read_steps(encode_steps(steps_batch(), boot_id="boot"))
    check_against(MANIFEST, good)
    check_against(MANIFEST, FeaturesMessage(feature_batch()))
    for change in (
        {"metrics": MANIFEST.metrics[:1]},
        {"hook_points": ()},
        {"hook_points": (HookPointSpec("body.0", 4, 2),)},
    ):
        with pytest.raises(WireError) as caught:
            check_against(msgspec_replace(MANIFEST, **change), good)
        assert caught.value.reason == "manifest"
    elsewhere = steps_batch()
    elsewhere.steps.env[1] = 2
    with pytest.raises(WireError, match="copy 2"):
        check_against(MANIFEST, StepsMessage("boot", elsewhere))


def test_a_remembered_header_changes_nothing():
    message = StepsMessage("boot", steps_batch(), (Drop(1, 2, DropReason.AGE),), 7)
    short = encode(message)
    # The same fields in another order go the long way.
    header = dict(reversed(msgpack.unpackb(short[0]).items()))
    long = [msgpack.packb(header), short[1]]
    for _ in range(2):
        assert same(decode(short), decode(long))
        assert same(decode(short), message)
    for change in ({"boot": "other"}, {"sent": -1}, {"seq": 2**63 - 1}, {"drops": [[0, 0, "age"]]}):
        outcomes: list[object] = []
        for frames in (short, long):
            try:
                outcomes.append(read_steps(altered(frames, **change)).boot_id)
            except WireError as error:
                outcomes.append((error.reason, str(error)))
        assert outcomes[0] == outcomes[1]
    # A second seq, hidden behind the first one's end, must not pass for the rest of the header.
    again = short[0] + msgpack.packb({"seq": 1, "sent": 1, "drops": []})[1:]
    assert refusal([again, short[1]]) == "header"


def test_what_was_checked_once_is_not_taken_for_another_manifest():
    check = ManifestCheck(MANIFEST)
    frames = encode_steps(steps_batch(), boot_id="boot")
    check(read_steps(frames))
    check(read_steps(frames))
    wider = Activations(np.ones((4, 9), np.float32), *list_of(steps_batch()))
    other = StepBatch(steps_batch().steps, {"body.0": wider})
    with pytest.raises(WireError, match="widths"):
        check(read_steps(encode_steps(other, boot_id="boot")))
    batch = steps_batch()
    batch.steps.env[0] = 2
    with pytest.raises(WireError, match="copy 2"):
        check(read_steps(encode_steps(batch, boot_id="boot")))


def list_of(batch):
    seen = batch.activations["body.0"]
    return seen.y, seen.y_rows


def test_kind_of_never_raises():
    assert kind_of(encode_message(Heartbeat(sent_ns=0))) == "heartbeat"
    assert kind_of([]) == ""
    assert kind_of([b"\xc1"]) == ""
    assert kind_of([msgpack.packb({"kind": "odd"})]) == ""


def test_messages_are_frozen():
    beat = Heartbeat(sent_ns=1)
    with pytest.raises(AttributeError):
        beat.sent_ns = 2  # type: ignore[misc] # what the test is about
    assert msgspec.structs.asdict(beat) == {"sent_ns": 1}
    assert isinstance(Document("t", "s", {}), Document)

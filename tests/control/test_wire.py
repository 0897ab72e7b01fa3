"""Control's messages: what was sealed comes back, and nothing else comes in."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlatent_live.control.commands import Change, Command, Operation
from interlatent_live.control.machine import Fate, Mode
from interlatent_live.control.wire import (
    LARGEST_FROM_OUTSIDE,
    VERSION,
    AgentAnswer,
    AgentEvent,
    AgentEvents,
    AgentHello,
    AgentsShown,
    AgentState,
    Beat,
    Do,
    Envelope,
    EventsKept,
    HookOffer,
    Look,
    Result,
    Role,
    Second,
    Submit,
    Told,
    Way,
    control_key,
)
from interlatent_live.errors import WireError
from interlatent_live.interventions.values import FeatureCondition, Intervention, Kind

KEY = control_key("a token")
COMMAND = Command(
    "c1", Operation.INTERVENE, "ada", "to see", 10**9, "L", 4,
    (
        Change("net.0", "sha256:aa", Intervention(3, Kind.STEER, -1.5), 2.0),
        Change("net.0", "sha256:aa",
               Intervention(4, Kind.CLAMP, 1.0, FeatureCondition(5, 0.5), "tilt > 0.1"), 1.0),
    ),
)  # fmt: skip
EVENT = AgentEvent(
    number=1, version=2, row=77, command_id="c1", operation=Operation.INTERVENE,
    fate=Fate.APPLIED, actor="ada", detail="", time_ns=5,
)  # fmt: skip
HELLO = AgentHello(
    agent="walker", run_id="r", boot_id="b", policy_hash="sha256:p", safe_action=True,
    hook_points=[HookOffer(name="net.0", transcoder="sha256:aa", features=64, max_norm=2.0)],
    require_oversight=False, lease_ms=2000, max_ttl_ms=60_000,
)  # fmt: skip
MESSAGES = {
    Way.FROM_AGENT: [
        HELLO,
        AgentState(boot_id="b", version=1, mode=Mode.HELD, row=3, obeyed=True, latched=False),
        AgentAnswer(boot_id="b", command_id="c1", accepted=False, reason="no", version=1),
        AgentEvents(boot_id="b", events=[EVENT]),
    ],
    Way.TO_AGENT: [
        Do(boot_id="b", command=COMMAND, seal="ab"),
        EventsKept(boot_id="b", number=3),
        Beat(),
    ],
    Way.FROM_OPERATOR: [
        Submit(id="1", sent_ns=1, agent="walker", role=Role.OPERATOR, command=COMMAND),
        Second(id="2", sent_ns=1, command_id="c1", actor="bob", role=Role.ADMIN),
        Look(id="3", sent_ns=1, follow=True),
    ],
    Way.TO_OPERATOR: [
        Result(id="1", accepted=True),
        AgentsShown(id="3", agents=[]),
        Told(agent="walker", boot_id="b", event=EVENT),
    ],
}
EACH = [(way, message) for way, messages in MESSAGES.items() for message in messages]
BACK = {
    Way.FROM_AGENT: Way.TO_AGENT,
    Way.TO_AGENT: Way.FROM_AGENT,
    Way.FROM_OPERATOR: Way.TO_OPERATOR,
    Way.TO_OPERATOR: Way.FROM_OPERATOR,
}


def sender(way, key=KEY):
    return Envelope(key, out=way, into=BACK[way])


def receiver(way, key=KEY):
    return Envelope(key, out=BACK[way], into=way)


@pytest.mark.parametrize(("way", "message"), EACH)
@pytest.mark.parametrize("key", [KEY, None])
def test_a_message_comes_back_as_it_was(way, message, key):
    assert receiver(way, key).open(sender(way, key).seal(message)) == message


@pytest.mark.parametrize(("way", "message"), EACH)
def test_a_message_is_none_on_another_way(way, message):
    frames = sender(way).seal(message)
    for other in set(Way) - {way}:
        with pytest.raises(WireError) as refused:
            receiver(other).open(frames)
        assert refused.value.reason == "seal"


def test_another_key_or_none_is_refused():
    frames = sender(Way.TO_AGENT, control_key("another token")).seal(Beat())
    unsealed = sender(Way.TO_AGENT, None).seal(Beat())
    for strange in (frames, unsealed):
        with pytest.raises(WireError, match="another key"):
            receiver(Way.TO_AGENT).open(strange)
    with pytest.raises(ValueError, match="needs a key"):
        Envelope(b"", out=Way.TO_AGENT, into=Way.FROM_AGENT)


def opened(body, way=Way.FROM_OPERATOR):
    """What the receiver without a key makes of a body."""
    return receiver(way, None).open([VERSION, b"", body])


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([VERSION, b""], "frames"),
        ([b"interlatent-control/2", b"", b"{}"], "version"),
        ([VERSION, b"", b" " * (LARGEST_FROM_OUTSIDE + 1)], "length"),
        ([VERSION, b"", b"["], "message"),
        ([VERSION, b"", b"[" * 100_000], "message"),
        ([VERSION, b"", b'{"type":"nonsense"}'], "message"),
        ([VERSION, b"", b'{"type":"look","id":"1","sent_ns":1,"more":1}'], "message"),
        ([VERSION, b"", b'{"type":"look","id":"\\u001b[2J","sent_ns":1}'], "message"),
        ([VERSION, b"", b'{"type":"look","id":"1","sent_ns":1e999}'], "message"),
    ],
)
def test_what_is_no_message_is_refused_in_a_word(frames, reason):
    with pytest.raises(WireError) as refused:
        receiver(Way.FROM_OPERATOR, None).open(frames)
    assert refused.value.reason == reason


@pytest.mark.parametrize(
    "change",
    [
        {"ttl_ns": 0},
        {"operation": "explode"},
        {"actor": ""},
        {"reason": "x" * 1001},
        {"changes": []},
        {"action": [1.0]},
        {"targets": ["c0"]},
    ],
)
def test_a_command_that_could_not_be_made_cannot_be_sent_either(change):
    plain = msgspec.to_builtins(MESSAGES[Way.FROM_OPERATOR][0])
    plain["command"].update(change)
    with pytest.raises(WireError) as refused:
        opened(msgspec.json.encode(plain))
    assert refused.value.reason == "message"


WORDS = st.sampled_from(
    [b'"type":"submit"', b'"command":{', b'"ttl_ns":', b"1e400", b"-1", b"null", b"[", b"}", b'""',
     b'"operation":"stop"', b'"changes":[', b"\xff", b"9" * 400, b'"\\ud800"']
)  # fmt: skip


@given(st.lists(WORDS | st.binary(max_size=8), max_size=40), st.sampled_from(list(Way)))
def test_noise_is_refused_and_never_raises_anything_else(parts, way):
    with pytest.raises(WireError):
        opened(b"{" + b",".join(parts), way)


@given(st.sampled_from(EACH), st.data())
def test_a_damaged_message_is_refused_or_still_a_message(which, data):
    way, message = which
    frames = sender(way, None).seal(message)
    body = bytearray(frames[2])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(body) - 1))
        body[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
        if not body:
            break
    try:
        again = receiver(way, None).open([VERSION, b"", bytes(body)])
    except WireError:
        return
    assert receiver(way).open(sender(way).seal(again)) == again

from __future__ import annotations

import io
import json
import logging
import sys
from typing import TYPE_CHECKING, Any

import pytest

from interlatent_live.logs import configure_logging, get_logger, relay_line

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("interlatent_live")
    before = (list(root.handlers), root.level, ours.level)
    yield
    root.handlers, level, ours_level = list(before[0]), before[1], before[2]
    root.setLevel(level)
    ours.setLevel(ours_level)


@pytest.fixture
def out() -> io.StringIO:
    stream = io.StringIO()
    configure_logging("encoder", stream=stream)
    return stream


def events(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_an_event_is_one_json_line_with_its_service_and_time(out: io.StringIO) -> None:
    get_logger("engine", port=3).info("ready", text="two\nlines", path=sys)
    (event,) = events(out)
    assert event["event"] == "ready"
    assert event["level"] == "info"
    assert event["service"] == "encoder"
    assert event["logger"] == "interlatent_live.engine"
    assert event["port"] == 3
    assert event["text"] == "two\nlines"
    assert event["at"].endswith("Z")


def test_other_libraries_warnings_come_along_and_their_chatter_does_not(out: io.StringIO) -> None:
    logging.getLogger("httpx").info("chatter")
    logging.getLogger("httpx").warning("slow: %d s", 3)
    (event,) = events(out)
    assert (event["event"], event["logger"]) == ("slow: 3 s", "httpx")


def test_an_exception_stays_on_one_line(out: io.StringIO) -> None:
    try:
        int("broken")
    except ValueError:
        get_logger("x").exception("failed")
    (event,) = events(out)
    assert event["level"] == "error"
    assert "ValueError: invalid literal" in event["exception"]


def test_secrets_never_reach_the_log(out: io.StringIO) -> None:
    get_logger("x").info(
        "call", api_key="k1", openai_api_key="k2", headers={"Authorization": "k3"}, tokens=7
    )
    assert not any(secret in out.getvalue() for secret in ("k1", "k2", "k3"))
    assert events(out)[0]["tokens"] == 7


def test_levels_are_honoured() -> None:
    stream = io.StringIO()
    configure_logging("encoder", level="warning", stream=stream)
    get_logger("x").info("quiet")
    get_logger("x").warning("loud")
    assert [event["event"] for event in events(stream)] == ["loud"]


def test_configuring_again_replaces() -> None:
    first, second = io.StringIO(), io.StringIO()
    configure_logging("a", stream=first)
    configure_logging("b", stream=second)
    get_logger("x").info("hello")
    assert first.getvalue() == ""
    assert events(second)[0]["service"] == "b"


def test_people_get_text_without_colours_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    configure_logging("encoder", log_format="console", stream=stream)
    get_logger("x").info("ready", port=3)
    assert "ready" in stream.getvalue()
    assert "port=3" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def test_nothing_is_printed_before_anybody_asks(capsys: pytest.CaptureFixture[str]) -> None:
    get_logger("quiet").info("nobody listens")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_a_childs_own_event_is_passed_on_as_such(out: io.StringIO) -> None:
    log = get_logger("engine")
    relay_line(log, "explainer", "stderr", '{"event": "slow", "level": "warning", "claims": 3}')
    relay_line(log, "explainer", "stdout", "plain words")
    relay_line(log, "explainer", "stdout", '{"event": 1, "level": "nonsense"}')
    relay_line(log, "explainer", "stdout", '{"broken')
    own, plain, odd, broken = events(out)
    assert (own["event"], own["level"], own["claims"]) == ("slow", "warning", 3)
    assert own["service"] == plain["service"] == "explainer"
    assert (plain["event"], plain["text"], plain["stream"]) == ("output", "plain words", "stdout")
    assert (odd["event"], odd["level"]) == ("1", "info")
    assert broken["text"] == '{"broken'

import hashlib
import hmac
import time

import pytest

from interlatent_live.alerts.delivery import (
    MOST_WAITING,
    SIGNATURE,
    TIMESTAMP,
    Delivery,
    Patience,
    alertmanager,
    webhook,
)
from interlatent_live.errors import UserError
from interlatent_live.statistics.rules import AlertRule, Condition, Phase, Transition
from tests.support.alert_receiver import AlertReceiver

QUICK = Patience(timeout_s=0.3, first_s=0.05, longest_s=0.1, give_up_s=30.0)


def transition(name="high", phase=Phase.FIRING):
    rule = AlertRule(name, (Condition("fvu", ">", 0.1),), summary="too high")
    was = Phase.PENDING if phase is Phase.FIRING else Phase.FIRING
    return Transition(rule, "run", phase, was, 2_000_000_000, 1_000_000_000, {"fvu": 0.2})


def wait(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_alertmanager_gets_firing_and_resolved():
    with AlertReceiver() as server:
        delivery = Delivery(alertmanager(server.url), QUICK)
        delivery.tell(transition())
        delivery.tell(transition(phase=Phase.INACTIVE))
        wait(lambda: delivery.counts()["delivered"] == 2)
        delivery.close()
    assert {path for path, *_ in server.requests} == {"/api/v2/alerts"}
    (firing,), (resolved,) = server.bodies()
    assert firing["labels"]["alertname"] == "high"
    assert firing["startsAt"].startswith("1970-01-01T00:00:01")
    assert "endsAt" not in firing
    assert resolved["endsAt"].startswith("1970-01-01T00:00:02")


def test_the_webhook_is_signed(tmp_path):
    key = tmp_path / "key"
    key.write_bytes(b"sixteen bytes or more\n")
    key.chmod(0o600)
    with AlertReceiver() as server:
        delivery = Delivery(webhook(server.url + "/hook?a=1", key), QUICK)
        delivery.tell(transition())
        wait(lambda: delivery.counts()["delivered"] == 1)
        delivery.close()
    ((path, headers, body, _),) = server.requests
    assert path == "/hook?a=1"
    message = headers[TIMESTAMP].encode() + b"." + body
    expected = hmac.new(b"sixteen bytes or more", message, hashlib.sha256).hexdigest()
    assert headers[SIGNATURE] == f"sha256={expected}"
    assert server.bodies()[0]["status"] == "firing"


def test_bad_key_files_are_refused(tmp_path):
    key = tmp_path / "key"
    with pytest.raises(UserError, match="can't be read"):
        webhook("http://127.0.0.1", key)
    key.write_bytes(b"sixteen bytes or more")
    key.chmod(0o644)
    with pytest.raises(UserError, match="open to other users"):
        webhook("http://127.0.0.1", key)
    key.write_bytes(b"short")
    key.chmod(0o600)
    with pytest.raises(UserError, match="shorter than 16"):
        webhook("http://127.0.0.1", key)


def test_failures_and_hangs_are_tried_again_in_order():
    with AlertReceiver(500, "hang", 503) as server:
        delivery = Delivery(webhook(server.url), QUICK)
        began = time.monotonic()
        delivery.tell(transition("first"))
        delivery.tell(transition("second"))
        assert time.monotonic() - began < 0.2
        wait(lambda: delivery.counts()["delivered"] == 2)
        assert delivery.counts() == {"delivered": 2, "failed": 3, "dropped": 0, "waiting": 0}
        delivery.close()
    assert [body["alert"] for body in server.bodies()] == ["first", "second"]


def test_what_waits_is_bounded_and_an_old_alert_is_let_go():
    delivery = Delivery(webhook("http://127.0.0.1:9"), Patience(0.2, 5.0, 5.0, 30.0))
    for number in range(MOST_WAITING + 10):
        delivery.tell(transition(f"a{number}"))
    counts = delivery.counts()
    assert counts["waiting"] == MOST_WAITING
    assert counts["dropped"] == 10
    delivery.close()
    impatient = Delivery(webhook("http://127.0.0.1:9"), Patience(0.2, 0.02, 0.02, 0.0))
    impatient.tell(transition())
    wait(lambda: impatient.counts()["dropped"] == 1)
    impatient.close()

"""A rule file to an HTTP receiver and the feed, through a correlator that is a real process."""

import time
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from interlatent_live.feed.client import FeedClient
from interlatent_live.feed.documents import Topic
from interlatent_live.queries import StatisticsClient
from interlatent_live.queries import messages as m
from tests.support.alert_receiver import AlertReceiver
from tests.support.correlator_service import CorrelatorProcess, Feeder
from tests.support.planted_stream import HOOK, episodes

RULES = """
[[rule]]
name = "reward_there"
when = ["mean:reward > 0.5"]
for_s = 1
severity = "critical"

[[rule]]
name = "related"
when = ["r:0:lean > 0.4 clear 0.3", "density:0 > 0.1"]

[[rule]]
name = "never"
when = ["metric:absent > 0"]
"""


def test_rules_reach_a_webhook_the_feed_and_the_answers(tmp_path):
    file = tmp_path / "rules.toml"
    file.write_text(RULES)
    with AlertReceiver(500) as server:
        flags = {"correlator.alert_rules": str(file), "correlator.webhook": server.url}
        batches = list(episodes(40))
        for batch in batches[30:]:
            batch.steps.metrics[:, 2] = 0.0
        with CorrelatorProcess(**flags) as one, Feeder(one.settings.endpoints.correlator) as feeder:
            feeder.send(batches[:30])
            with StatisticsClient(one.settings.endpoints.correlator_queries) as ask:
                alerts = {item.rule: item for item in ask.alerts().alerts.alerts}
                assert alerts["reward_there"].phase == "firing"
                assert alerts["related"].phase == "firing"
                assert alerts["related"].values["r:0:lean"] > 0.4
                assert alerts["never"].phase == "inactive"
                assert alerts["never"].values == {"metric:absent": None}
                feeder.send(batches[30:])
                alerts = {item.rule: item for item in ask.alerts().alerts.alerts}
                assert alerts["reward_there"].phase == "inactive"
            with FeedClient([one.settings.endpoints.correlator_feed], [Topic.ALERTS]) as client:
                deadline, seen = time.monotonic() + 10, {}
                while seen.get("webhook", {}).get("delivered") != 3:
                    assert time.monotonic() < deadline
                    for event in client.events(0.2):
                        seen = event.value.deliveries
                        assert event.value.rules == 3
                        assert {item.hook_point for item in event.value.alerts} == {HOOK}
    told = [(body["alert"], body["status"]) for body in server.bodies()]
    assert sorted(told[:2]) == [("related", "firing"), ("reward_there", "firing")]
    assert told[2] == ("reward_there", "resolved")
    assert seen["webhook"]["failed"] == 1


PREDICATES = """
[[rule]]
name = "strange"
predicate = "`density:0` > 0.1 and (`r:0:lean` > 0.4 or `fvu` > 0.9) and not `mean:reward` > 2"
clear = "`mean:reward` > 3"
for_s = 2
keep_s = 2
severity = "critical"
"""


def rewarded(count, value, *, first):
    """Batches ``first`` … of the planted stream, with another reward."""
    batches = list(episodes(first + count))[first:]
    for batch in batches:
        batch.steps.metrics[:, 2] = value
    return batches


@pytest.fixture
def strange(tmp_path):
    file = tmp_path / "rules.toml"
    file.write_text(PREDICATES)
    return {
        "correlator.alert_rules": str(file),
        "correlator.snapshots": str(tmp_path / "snapshots"),
        "correlator.snapshot_every_s": 0.2,
    }


def phase(ask):
    (status,) = ask.alerts().alerts.alerts
    return status.phase


def told(server):
    return [(body["alert"], body["status"]) for body in server.bodies()]


def metrics(service):
    """The correlator's metrics by name and labels, labels in alphabetic order."""
    address = f"http://{service.settings.endpoints.correlator_health}/metrics"
    text = urllib.request.urlopen(address, timeout=5).read().decode()
    return {
        one.name + ("" if not one.labels else "{" + labels(one) + "}"): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }


def labels(sample):
    return ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))


def until(condition, within_s=20):
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_predicate_reaches_an_alertmanager_and_a_webhook(strange):
    with AlertReceiver() as manager, AlertReceiver() as hook:
        flags = {**strange, "correlator.alertmanager": manager.url, "correlator.webhook": hook.url}
        with (
            CorrelatorProcess(**flags) as one,
            Feeder(one.settings.endpoints.correlator) as feeder,
            StatisticsClient(one.settings.endpoints.correlator_queries) as ask,
        ):
            feeder.send(rewarded(20, 1.0, first=0))
            assert phase(ask) == "firing"
            feeder.send(rewarded(5, 2.5, first=20))  # Holds no more, but is not clear either.
            assert phase(ask) == "firing"
            feeder.send(rewarded(6, 4.0, first=25))
            assert phase(ask) == "inactive"
            until(lambda: len(hook.bodies()) == 2 and len(manager.bodies()) >= 2)
            until(lambda: metrics(one)['interlatent_alerts{phase="inactive",rule="strange"}'] == 1)
            known = metrics(one)
    assert known['interlatent_alerts{phase="firing",rule="strange"}'] == 0
    assert known['interlatent_value{hook_point="hidden",name="mean:reward",run="run"}'] == 4
    assert 0.1 < known['interlatent_value{hook_point="hidden",name="density:0",run="run"}'] < 0.5
    assert known['interlatent_alert_deliveries_total{receiver="webhook",result="delivered"}'] == 2
    assert known["interlatent_queries_answered_total"] == 3
    assert known["interlatent_statistics_rows"] == 31 * 120
    assert known["interlatent_rows_missing"] == 0
    assert told(hook) == [("strange", "firing"), ("strange", "resolved")]
    fired, resolved = hook.bodies()
    assert set(fired["values"]) == {"density:0", "r:0:lean", "fvu", "mean:reward"}
    assert fired["at_ns"] - fired["started_ns"] == 2_000_000_000
    assert resolved["started_ns"] == fired["started_ns"]
    assert {path for path, *_ in manager.requests} == {"/api/v2/alerts"}
    first, *_, last = (item for body in manager.bodies() for item in body)
    assert first["labels"] == last["labels"]
    assert first["labels"]["alertname"] == "strange"
    assert "endsAt" not in first
    assert "endsAt" in last


def test_alerts_survive_a_kill_and_nobody_is_told_twice(strange):
    with AlertReceiver() as hook:
        flags = {**strange, "correlator.webhook": hook.url}
        with CorrelatorProcess(**flags) as one:
            endpoints = one.settings.endpoints
            for round_ in range(2):
                with (
                    Feeder(endpoints.correlator) as feeder,
                    StatisticsClient(endpoints.correlator_queries) as ask,
                ):
                    feeder.send(rewarded(20, 1.0, first=20 * round_))
                    assert phase(ask) == "firing"
                    rows = 20 * 120 * (round_ + 1)
                    until(lambda: ask.ask(m.Snapshots()).items[0].rows == rows)  # noqa: B023
                one.kill()
                one.start()
            with (
                Feeder(endpoints.correlator) as feeder,
                StatisticsClient(endpoints.correlator_queries) as ask,
            ):
                assert phase(ask) == "firing"
                feeder.send(rewarded(6, 4.0, first=40))
                assert phase(ask) == "inactive"
            until(lambda: len(hook.bodies()) == 2)
    assert told(hook) == [("strange", "firing"), ("strange", "resolved")]
    fired, resolved = hook.bodies()
    assert resolved["started_ns"] == fired["started_ns"]

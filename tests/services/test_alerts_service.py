"""A rule file to an HTTP receiver and the feed, through a correlator that is a real process."""

import time

from interlatent_live.feed.client import FeedClient
from interlatent_live.feed.documents import Topic
from interlatent_live.queries import StatisticsClient
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

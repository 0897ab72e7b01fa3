"""What the correlator publishes of alerts and drift reaches the explainer's core."""

import time

from interlatent_live.config import on_free_ports, resolve
from interlatent_live.feed.documents import AlertsDocument, Topic
from interlatent_live.services import explainer as service
from interlatent_live.services.network import Network
from interlatent_live.services.publishing import FeedPublisher


def test_alerts_come_from_the_correlator_s_feed(monkeypatch):
    settings = on_free_ports(resolve(environment={}).settings)
    shell = service.ExplainerShell(settings)
    heard: list[AlertsDocument] = []
    monkeypatch.setattr(shell._core, "alerts", heard.append)
    document = AlertsDocument("run", "walker", 1, [], [], [], {}, 1)
    with Network(None) as network:
        feed = FeedPublisher(network, settings.endpoints.correlator_feed, "correlator", 2**20)
        shell.alerts = service._alerts(settings)
        try:
            deadline = time.monotonic() + 20
            while not heard and time.monotonic() < deadline:
                feed.welcome_viewers()
                feed.documents(Topic.ALERTS, document, key="run")
                shell._pass_alerts_on()
                shell._take_in()
        finally:
            shell.alerts.close()
            feed.close()
    assert heard[0] == document

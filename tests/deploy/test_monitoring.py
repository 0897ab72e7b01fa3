"""What Prometheus and Grafana are given, against a real Prometheus that scrapes real services."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.docs.test_figures import load
from tests.support.system import System, Walker, save, transcoder

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
DASHBOARD = DEPLOY / "grafana" / "interlatent-live.json"
RULES = DEPLOY / "prometheus" / "rules.yml"
# With a recorder, whose lines an operator who has one takes the comment off.
SCRAPE = re.sub(
    r"(?m)^( +)# ( *)(- targets|labels)",
    r"\1\2\3",
    (DEPLOY / "prometheus" / "scrape.yml").read_text(encoding="utf-8"),
)

QUIET_WITHOUT_CAUSE = {
    "interlatent_writer",  # no language model in the test
    "interlatent_value",  # no alert rules in it
    "interlatent_alerts",
    "interlatent_alert_deliveries",
    "interlatent_http_sockets",  # no page is open
    "interlatent_transcoder_versions",
    "interlatent_fvu",  # its transcoder carries no baseline to measure against
}


def expressions() -> list[tuple[str, str]]:
    """Every (where, expression) of the dashboard and the rules."""
    found = [
        (panel["title"], target["expr"].replace("$agent", ".*"))
        for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
        for target in panel.get("targets", ())
    ]
    yaml = pytest.importorskip("yaml", reason="the extra operations is not installed")
    for group in yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]:
        found += [(rule.get("alert") or rule["record"], rule["expr"]) for rule in group["rules"]]
    return found


def test_the_dashboard_is_what_its_list_says():
    assert DASHBOARD.read_text(encoding="utf-8") == load("dashboard").text()


def test_every_panel_says_what_it_shows_and_has_a_place_of_its_own():
    places = set()
    for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]:
        grid = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(grid["x"], grid["x"] + grid["w"])
            for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not cells & places, panel["title"]
        assert grid["x"] + grid["w"] <= 24
        places |= cells
        assert panel["type"] == "row" or panel["description"]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no Prometheus here")
def test_the_rules_fire_when_they_should_and_only_then():
    done = subprocess.run(
        ["promtool", "test", "rules", "rules_test.yml"],
        cwd=DEPLOY / "prometheus",
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr


class Prometheus:
    """A real server that scrapes a system under the project's own rules."""

    def __init__(self, folder: Path, port: int, targets: dict[str, str]) -> None:
        self.url = f"http://127.0.0.1:{port}"
        scrape = SCRAPE
        # The file that operators are given, with this run's ports and a quicker pace.
        for name, address in targets.items():
            scrape, changed = re.subn(
                rf'targets: \["[^"]+"\](\s+labels: {{service: {name}}})',
                rf'targets: ["{address}"]\1',
                scrape,
            )
            assert changed == 1, name
        scrape = scrape.replace("scrape_interval: 5s", "scrape_interval: 1s")
        scrape = "global: {evaluation_interval: 1s}\n" + scrape
        (folder / "scrape.yml").write_text(scrape, encoding="utf-8")
        shutil.copy(RULES, folder)
        self.process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'scrape.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--log.level=error",
            ]
        )

    def query(self, expression: str) -> list[dict[str, Any]]:
        question = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"{self.url}/api/v1/query?{question}", timeout=10) as answer:
            said = json.load(answer)
        assert said["status"] == "success", said
        found: list[dict[str, Any]] = said["data"]["result"]
        return found

    def wait(self, condition, timeout_s=60.0):
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            try:
                if condition():
                    return
            except OSError:
                pass
            time.sleep(0.2)
        raise AssertionError(f"not within {timeout_s} s")

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(20)


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A running system with an agent that acts, and a Prometheus that has seen it for a while."""
    if shutil.which("prometheus") is None:
        pytest.skip("no Prometheus here")
    folder = tmp_path_factory.mktemp("monitoring")
    save(folder / "transcoders", transcoder())
    flags = {
        "encoder.transcoders": [str(folder / "transcoders")],
        "recorder.folder": str(folder / "recordings"),
    }
    with System(**flags) as system, system.tap() as tap:
        scraped = re.findall(r"^ +labels: {service: (\w+)}", SCRAPE, re.MULTILINE)
        targets = {name: system.settings.endpoints.health(name) for name in scraped}
        port = int(system.settings.endpoints.agents.rpartition(":")[2])
        prometheus = Prometheus(folder, free_port(other_than=port), targets)
        try:
            walker = Walker(tap)
            prometheus.wait(lambda: len(prometheus.query("up == 1")) == len(targets))
            page = f"http://{system.settings.console.http}/api/v1/health"
            for _ in range(4):
                walker.walk(3000, hz=500)
                urllib.request.urlopen(page, timeout=10).close()
            prometheus.wait(lambda: prometheus.query("agent:interlatent_steps_lost:ratio5m"))
            yield prometheus
        finally:
            prometheus.close()


def free_port(other_than: int) -> int:
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port != other_than:
            return port


@pytest.mark.operations
def test_every_expression_is_understood_and_those_with_a_cause_have_values(watched):
    empty = []
    for where, expression in expressions():
        found = watched.query(expression)
        named = set(re.findall(r"\b(?:interlatent|process)_\w+", expression))
        excused = any(one.startswith(quiet) for one in named for quiet in QUIET_WITHOUT_CAUSE)
        # An alert that does not fire has no value, which is what is wanted here.
        if not found and not excused and not where.startswith("Interlatent"):
            empty.append((where, expression))
    assert empty == []


@pytest.mark.operations
def test_every_metric_that_is_named_exists(watched):
    with urllib.request.urlopen(
        f"{watched.url}/api/v1/label/__name__/values", timeout=10
    ) as answer:
        exported = set(json.load(answer)["data"])
    sources = "".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "services").glob("*metrics.py")
    ) + (ROOT / "interlatent_live" / "console" / "metrics.py").read_text(encoding="utf-8")
    for where, expression in expressions():
        for metric in re.findall(r"(?<![:\w])(?:interlatent|process)_\w+", expression):
            base = re.sub(r"^interlatent_(writer|http)_", "_", metric)
            base = re.sub(r"_(total|bucket|sum|count)$", "", base)
            excused = any(metric.startswith(quiet) for quiet in QUIET_WITHOUT_CAUSE)
            assert metric in exported or (excused and base in sources), f"{where}: {metric}"


@pytest.mark.operations
def test_nothing_fires_while_all_is_well(watched):
    firing = watched.query('ALERTS{alertstate="firing"}')
    assert [one["metric"]["alertname"] for one in firing] == []


@pytest.mark.operations
def test_labels_are_few(watched):
    """Series must not grow with steps, features or time: some hundred a service, whatever comes."""
    for one in watched.query('count by (service) ({job="interlatent-live"})'):
        assert int(one["value"][1]) < 600, one

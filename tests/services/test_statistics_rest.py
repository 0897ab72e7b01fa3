"""The REST face and the command line, against a correlator that is a real process."""

import json

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from interlatent_live.cli.main import app as command
from interlatent_live.queries import StatisticsClient
from interlatent_live.queries.rest import ROUTES, router
from tests.support.correlator_service import CorrelatorProcess, Feeder
from tests.support.planted_stream import HOOK, LEAN, episodes


@pytest.fixture(scope="module")
def endpoint():
    with CorrelatorProcess() as one:
        with Feeder(one.settings.endpoints.correlator) as feeder:
            feeder.send(episodes(40))
        yield one.settings.endpoints.correlator_queries


@pytest.fixture(scope="module")
def http(endpoint):
    application = FastAPI()
    application.include_router(router(lambda: StatisticsClient(endpoint)), prefix="/api")
    with TestClient(application) as client:
        yield client


def test_every_route_answers(http):
    asked = {"/features/{feature}": f"/features/{LEAN}", "/metrics/{metric}": "/metrics/lean"}
    for path, _, _ in ROUTES:
        query = "?before=now&after_window=slice:terminated" if path == "/compare" else ""
        answer = http.get("/api" + asked.get(path, path) + query)
        assert answer.status_code == 200, (path, answer.text)
        assert answer.json()["answer"]


def test_numbers_and_reasons(http):
    profile = http.get(f"/api/features/{LEAN}").json()
    assert profile["metrics"][0]["lo"] > 0.4
    assert profile["metrics"][2]["r"] is None
    assert "did not vary" in profile["metrics"][2]["reasons"]["r"]


def test_pages(http):
    seen, cursor = [], None
    while True:
        parameters = {"limit": 5} | ({"cursor": cursor} if cursor else {})
        page = http.get("/api/pairs", params=parameters).json()
        seen += [(item["feature"], item["association"]["name"]) for item in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert len(seen) == len(set(seen)) == page["matched"] == 12


def test_mistakes_are_sentences_with_their_status(http):
    assert http.get("/api/features", params={"limit": 0}).status_code == 422
    assert "no parameter 'size'" in http.get("/api/features?size=3").json()["detail"]
    unknown = http.get("/api/features", params={"run": "nobody"})
    assert (unknown.status_code, "no run 'nobody'" in unknown.json()["detail"]) == (404, True)
    nobody = FastAPI()
    nobody.include_router(router(lambda: StatisticsClient("tcp://127.0.0.1:9", timeout_s=0.1)))
    with TestClient(nobody) as client:
        assert client.get("/runs").status_code == 503


def test_openapi_describes_parameters_and_answers(http):
    paths = http.get("/openapi.json").json()["paths"]
    route = paths["/api/features/{feature}"]["get"]
    names = {one["name"]: one for one in route["parameters"]}
    assert names["feature"]["in"] == "path"
    assert names["window"]["schema"]["default"] == "all"
    schema = route["responses"]["200"]["content"]["application/json"]["schema"]
    assert "partners" in schema["properties"]
    limits = [one for one in paths["/api/pairs"]["get"]["parameters"] if one["name"] == "limit"]
    assert limits[0]["schema"]["maximum"] == 1000


def run(endpoint, *words):
    result = CliRunner().invoke(
        command,
        ["query", *words, "--set", f"endpoints.correlator_queries={endpoint}"],
        env={"COLUMNS": "200"},
        catch_exceptions=False,
    )
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["runs"], "walker"),
        (["hook-points"], HOOK),
        (["features", "--live"], "lean"),
        (["pairs", "--metric", "lean"], "lean"),
        (["profile", str(LEAN)], "mean_activation"),
        (["metric", "lean"], "lean"),
        (["screening"], "no error rate"),
        (["discoveries"], "e-BH"),
        (["alerts"], "novelty"),
        (["slices"], "slice:terminated"),
        (["compare", "now", "--after-window", "last:16384"], "z_difference"),
    ],
)
def test_commands_show_tables_and_give_json(endpoint, words, shown):
    assert shown in run(endpoint, *words)
    assert json.loads(run(endpoint, *words, "--json"))["answer"]


def test_export_by_the_command(endpoint, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "pairs.parquet"
    assert "12 pairs" in run(endpoint, "export", str(file))
    assert parquet.read_table(file).num_rows == 12
    run(endpoint, "export", str(tmp_path / "pairs.csv"), "--format", "csv")
    lines = (tmp_path / "pairs.csv").read_text().splitlines()
    assert len(lines) == 13
    assert lines[0].startswith("feature,metric,unit")

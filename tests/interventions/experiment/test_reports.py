"""The documented experiments: their setups are whole, their pages say what the data say."""

import json
from pathlib import Path

import msgspec
import pytest

from interlatent_live.interventions.experiment.document import PAGE, PLOT, page
from interlatent_live.interventions.experiment.setup import Plan, read_setup
from interlatent_live.policies.files import load_policy
from interlatent_live.transcoders.native import load_transcoder

FOLDER = Path(__file__).parents[3] / "docs" / "experiments"
SETUPS = sorted(FOLDER.glob("*.toml"))
REPORTS = sorted(FOLDER.glob("*/report.json"))


@pytest.mark.parametrize("path", SETUPS, ids=lambda path: path.stem)
def test_a_setup_names_a_policy_and_its_transcoder(path):
    setup = read_setup(path)
    assert not setup.quick
    loaded = load_transcoder(path.parent / setup.transcoder)
    assert loaded.provenance.policy_hash == load_policy(setup.policy).policy_hash


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.parent.name)
def test_a_page_is_what_its_report_says(path):
    report = json.loads(path.read_text("utf-8"))
    assert (path.parent / PAGE).read_text("utf-8") == page(report)
    assert (path.parent / PLOT).exists()
    plan = msgspec.convert(report["plan"], Plan)
    assert plan.digest() == report["plan_sha256"]
    assert plan.setup == read_setup(FOLDER / f"{path.parent.name}.toml")
    assert report["untouched_twice"] == 0.0
    for one in report["hypotheses"]:
        assert len(one["controls"]) >= 100

"""The README's table over the zoo is the one that the committed reports give."""

import json
from pathlib import Path

import pytest

from interlatent_live.policies.files import load_policy
from interlatent_live.transcoders.native import load_transcoder
from interlatent_live.zoo.entry import find_entry
from interlatent_live.zoo.report import markdown
from interlatent_live.zoo.table import zoo_table

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "zoo"
REPORTS = sorted(FOLDER.glob("*.json"))
REPORTS.remove(FOLDER / "drivers.json")  # of several entries; tests/zoo/test_compare.py holds it


def test_the_readme_shows_the_table_of_the_committed_reports():
    assert zoo_table(FOLDER) in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("file", REPORTS, ids=lambda file: file.stem)
def test_a_committed_report_is_of_what_is_shipped_and_its_page_is_its_own(file):
    made = json.loads(file.read_text(encoding="utf-8"))
    entry = find_entry(file.stem)
    assert made["policy"]["hash"] == load_policy(entry.policy).policy_hash
    for hook, folder in entry.shipped.items():
        shipped = load_transcoder(folder).transcoder.identity
        assert made["transcoders"][hook] == shipped
    page = file.with_suffix(".md").read_text(encoding="utf-8")
    assert page == markdown(made)
    for picture in made.get("pictures", ()):
        assert (FOLDER / picture["file"]).exists()
    assert made["not_found"]

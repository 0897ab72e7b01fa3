"""The command as people type it."""

import pytest
from typer.testing import CliRunner

from interlatent_live.cli.zoo import app
from interlatent_live.errors import UserError
from interlatent_live.zoo.entry import entries


def test_list_names_every_entry():
    done = CliRunner().invoke(app, ["list"], env={"COLUMNS": "240"})
    assert done.exit_code == 0
    for entry in entries():
        assert entry.name in done.stdout


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: entry.name)
def test_show_says_origin_licence_hash_and_metrics(entry):
    done = CliRunner().invoke(app, ["show", entry.name])
    assert done.exit_code == 0
    for word in (entry.environment, "sha256:", "metrics", "hook points"):
        assert word in done.stdout


def test_an_unknown_entry_ends_with_a_sentence():
    done = CliRunner().invoke(app, ["run", "acrobot"])
    assert isinstance(done.exception, UserError)

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from interlatent_live.cli.main import app
from interlatent_live.config import Settings, leaves, load_settings
from interlatent_live.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> CliRunner:
    monkeypatch.chdir(tmp_path)
    return CliRunner()


def test_show_says_where_each_value_came_from(
    runner: CliRunner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "interlatent.toml").write_text("[encoder]\nthreads = 2\n", encoding="utf-8")
    monkeypatch.setenv("INTERLATENT_ENCODER__DEVICE", "cpu")
    result = runner.invoke(app, ["config", "show", "--json", "-s", "explainer.model=x"])
    assert result.exit_code == 0
    shown = json.loads(result.stdout)
    assert list(shown) == [name for name, _ in leaves(Settings())]
    assert shown["encoder.threads"] == {"value": 2, "from": "interlatent.toml"}
    assert shown["encoder.device"] == {"value": "cpu", "from": "INTERLATENT_ENCODER__DEVICE"}
    assert shown["explainer.model"] == {"value": "x", "from": "flag"}
    assert shown["security.keys"] == {"value": None, "from": "default"}


def test_show_is_a_table_for_people(runner: CliRunner) -> None:
    result = runner.invoke(app, ["config", "show"], env={"COLUMNS": "80"})
    assert result.exit_code == 0
    assert "encoder.device" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_the_template_is_a_file_that_changes_nothing(runner: CliRunner, tmp_path: Path) -> None:
    result = runner.invoke(app, ["config", "template"])
    file = tmp_path / "template.toml"
    file.write_text(result.stdout, encoding="utf-8")
    assert load_settings(file, environment={}) == Settings()
    for name, _ in leaves(Settings()):
        assert f"{name.partition('.')[2]} =" in result.stdout


def test_a_mistake_is_the_users(runner: CliRunner) -> None:
    result = runner.invoke(app, ["config", "show", "--set", "encoder.devise=cpu"])
    assert isinstance(result.exception, UserError)
    assert "did you mean encoder.device" in str(result.exception)

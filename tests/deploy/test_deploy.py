"""What operators copy is held to what the services really are."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from interlatent_live.cli.main import app
from interlatent_live.config import Settings

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
UNIT = (DEPLOY / "systemd" / "interlatent-live.service").read_text(encoding="utf-8")


def test_the_unit_starts_a_command_that_exists() -> None:
    command = re.search(r"^ExecStart=(.*)$", UNIT, re.MULTILINE)
    assert command is not None
    program, *arguments = shlex.split(command[1])
    assert program.endswith("/bin/interlatent-live")
    plain = [word for word in arguments if not word.startswith(("-", "/"))]
    options = {word for word in arguments if word.startswith("--")}
    result = CliRunner().invoke(app, [*plain, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert all(option in result.stdout for option in options)


def test_the_unit_does_not_restart_what_only_the_user_can_mend() -> None:
    assert "RestartPreventExitStatus=2\n" in UNIT


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    # It insists on a program that is there.
    unit = tmp_path / "interlatent-live.service"
    unit.write_text(UNIT.replace("/opt/interlatent-live/bin/interlatent-live", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    ours = [line for line in done.stderr.splitlines() if unit.name in line]
    assert ours == []


def test_prometheus_scrapes_where_the_services_listen() -> None:
    scraped = (DEPLOY / "prometheus" / "scrape.yml").read_text(encoding="utf-8")
    found = dict(re.findall(r'targets: \["([^"]+)"\]\s+labels: \{service: (\w+)\}', scraped))
    endpoints = Settings().endpoints
    assert found == {endpoints.health(name): name for name in Settings().services()}
    assert endpoints.recorder_health in scraped, "in a comment, for those who record"


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no Prometheus here")
@pytest.mark.parametrize(("kind", "name"), [("rules", "rules.yml"), ("config", "scrape.yml")])
def test_prometheus_itself_accepts_the_files(kind: str, name: str) -> None:
    path = DEPLOY / "prometheus" / name
    done = subprocess.run(
        ["promtool", "check", kind, path], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr

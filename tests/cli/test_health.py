"""``interlatent-live health`` against services that are there, and that are not."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from interlatent_live.cli.main import app
from interlatent_live.config import Settings, on_free_ports
from interlatent_live.services.runtime import ServiceRuntime


def ask(settings: Settings, *arguments: str):
    return CliRunner().invoke(app, ["health", *arguments], env=settings.environment())


def test_a_service_that_takes_work_is_ready_and_one_that_does_not_says_why():
    settings = on_free_ports(Settings())
    with ServiceRuntime("encoder", health=settings.endpoints.encoder_health) as runtime:
        before = ask(settings, "encoder")
        assert before.exit_code == 1
        assert before.stdout.startswith("encoder     not ready: ")
        runtime.ready(device="cpu")
        after = ask(settings, "encoder", "--json")
    assert after.exit_code == 0
    said = json.loads(after.stdout)["encoder"]
    assert (said["ready"], said["device"]) == (True, "cpu")


def test_without_services_every_one_is_asked_and_missing_ones_are_named():
    settings = on_free_ports(Settings())
    result = ask(settings)
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(settings.services())
    for name, line in zip(settings.services(), lines, strict=True):
        assert f"no answer at {settings.endpoints.health(name)}" in line


def test_an_unknown_service_is_named_with_those_there_are():
    result = ask(Settings(), "decoder")
    assert "there is no service 'decoder'" in str(result.exception)

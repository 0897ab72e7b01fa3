from __future__ import annotations

import http.server
import json
import os
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from interlatent_live.cli import doctor as module
from interlatent_live.cli.doctor import (
    Finding,
    State,
    keys,
    language_model,
    machine,
    ports,
    reach,
)
from interlatent_live.cli.main import app
from interlatent_live.config import CONFIG_VARIABLE, Settings, load_settings, on_free_ports
from interlatent_live.services.runtime import ServiceRuntime

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def settings(**flags: Any) -> Settings:
    named = {name.replace("__", "."): value for name, value in flags.items()}
    return load_settings(flags=named, environment={CONFIG_VARIABLE: ""})


@pytest.fixture
def free() -> Settings:
    return on_free_ports(Settings())


def run(free: Settings, *arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(
        app, ["doctor", *arguments], env={**free.environment(), "COLUMNS": "80"}
    )
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.stdout


def test_it_is_readable_on_80_columns_and_good_here(free: Settings) -> None:
    code, text = run(free)
    assert code == 0
    assert max(map(len, text.splitlines())) <= 80
    assert "Nothing is in the way." in text
    assert "the built-in writer" in text
    assert "[green]" not in text


def test_the_same_as_json(free: Settings) -> None:
    code, text = run(free, "--json")
    findings = json.loads(text)["findings"]
    assert code == 0
    topics = {one["topic"] for one in findings}
    assert topics >= {
        "installed", "device", "memory", "open files", "ports", "clock", "language model", "keys",
    }  # fmt: skip
    assert {one["state"] for one in findings} <= {"ok", "note", "problem"}
    assert all(one["remedy"] for one in findings if one["state"] != "ok")


def test_it_contacts_nobody_unasked(free: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **_: object) -> None:
        raise AssertionError(f"connected to somebody: {arguments}")

    monkeypatch.setattr(module, "reach", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", _only_loopback(socket.getaddrinfo))
    code, _ = run(
        free,
        "-s",
        "explainer.writer=openai",
        "-s",
        "explainer.model=x",
        "-s",
        "explainer.money_limit=1",
    )
    assert code in {0, 1}


def _only_loopback(real: Any) -> Any:
    def guarded(host: Any, *arguments: Any, **keywords: Any) -> Any:
        assert host in {"127.0.0.1", "localhost", "::1"}, f"looked up {host}"
        return real(host, *arguments, **keywords)

    return guarded


def test_a_port_in_use_is_in_the_way(free: Settings) -> None:
    port = int(free.endpoints.agents.rpartition(":")[2])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        bad = [one for one in ports(free) if one.state is State.BAD]
        code, text = run(free)
    assert [one.topic for one in bad] == [f"port {port}"]
    assert "endpoints.agents" in bad[0].remedy
    assert code == 1
    assert "1 thing(s) are in the way" in text


def test_a_running_service_of_ours_is_recognised(free: Settings) -> None:
    with ServiceRuntime("encoder", health=free.endpoints.encoder_health) as runtime:
        runtime.ready()
        found = list(ports(free))
    assert found[0].topic == "running"
    assert f"encoder (process {os.getpid()})" in found[0].text
    assert all(one.state is State.GOOD for one in found)


def test_a_chosen_language_model_is_described_without_its_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    (missing,) = language_model(settings(explainer__writer="openai"))
    assert missing.state is State.BAD
    for word in ("no model is named", "OPENAI_API_KEY is not set", "money_limit is 0"):
        assert word in missing.text
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    (good,) = language_model(
        settings(explainer__writer="openai", explainer__model="m", explainer__money_limit=1)
    )
    assert good.state is State.GOOD
    assert "not contacted" in good.text
    assert "secret" not in good.text + good.remedy
    (local,) = language_model(
        settings(
            explainer__writer="anthropic",
            explainer__model="m",
            explainer__base_url="http://127.0.0.1:9/v1",
        )
    )
    assert local.state is State.GOOD


class _Models(http.server.BaseHTTPRequestHandler):
    status = 200
    body = b'{"data": [{"id": "tiny"}, {"id": "small"}]}'
    seen: list[dict[str, str]]

    def do_GET(self) -> None:
        self.seen.append({"path": self.path, **dict(self.headers)})
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[tuple[str, type[_Models]]]:
    class Handler(_Models):
        seen: list[dict[str, str]] = []  # noqa: RUF012 - a fresh class per test

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1", Handler
        server.shutdown()
        thread.join()


def test_a_named_server_is_asked_for_its_models_and_gets_no_key(
    server: tuple[str, type[_Models]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    url, handler = server
    found = reach("openai", settings(explainer__writer="openai", explainer__base_url=url))
    assert found == Finding("connection", State.GOOD, f"{url} answers; models: tiny, small")
    assert [request["path"] for request in handler.seen] == ["/v1/models"]
    assert "secret" not in str(handler.seen)


def test_a_server_that_wants_a_key_is_reachable(server: tuple[str, type[_Models]]) -> None:
    url, handler = server
    handler.status = 401
    assert "answers, and wants a key" in reach(url, settings()).text
    handler.status = 404
    assert reach(url, settings()).state is State.NOTE
    handler.status, handler.body = 200, b"not json"
    assert reach(url, settings()).text == f"{url} answers"


def test_an_absent_server_and_nonsense_are_said_plainly() -> None:
    found = reach("http://127.0.0.1:9/v1", settings())
    assert found.state is State.BAD
    assert "can't be reached" in found.text
    assert "neither openai, anthropic nor a URL" in reach("file:///etc/passwd", settings()).text


def test_keys_that_others_can_read_are_a_problem(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    (absent,) = keys(settings(security__keys=str(folder)))
    assert absent.state is State.BAD
    folder.mkdir(mode=0o755)
    (open_,) = keys(settings(security__keys=str(folder)))
    assert open_.remedy == f"chmod 700 {folder}"
    folder.chmod(0o700)
    (closed,) = keys(settings(security__keys=str(folder)))
    assert closed.state is State.GOOD


def test_buffers_larger_than_the_memory_are_noticed() -> None:
    big = settings(limits__statistics_bytes=1 << 50)
    memory = next(one for one in machine(big) if one.topic == "memory")
    assert memory.state is State.NOTE


def test_a_missing_gpu_is_a_problem_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert next(module.device(settings(encoder__device="cuda"))).state is State.BAD
    assert next(module.device(settings())).state is State.GOOD

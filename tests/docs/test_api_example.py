"""The example in docs/api.md is run against a console over real sockets."""

from __future__ import annotations

import re
from pathlib import Path

from interlatent_live.console.secrets import FILE_NAME
from interlatent_live.store import ClaimFilter
from tests.client.test_api import WRITTEN
from tests.support.console import TOKEN, RunningConsole
from tests.support.feeds import agents_document, claim, claims_document

PAGE = Path(__file__).resolve().parents[2] / "docs" / "api.md"


def test_the_example_does_what_it_says(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    tmp_path.chmod(0o700)
    (tmp_path / FILE_NAME).write_text(TOKEN + "\n")
    (tmp_path / FILE_NAME).chmod(0o600)
    with RunningConsole(tmp_path) as console:
        console.store.take(agents_document())
        console.store.take(
            claims_document([claim(3, feature=3, version=0, created_ns=5, **WRITTEN)])
        )
        console.say("The pole leans right.")
        monkeypatch.setenv("INTERLATENT_CONFIG", "")
        monkeypatch.setenv("INTERLATENT_CONSOLE__HTTP", console.address)
        monkeypatch.setenv("INTERLATENT_CONSOLE__STATE", str(tmp_path))
        exec(compile(code, str(PAGE), "exec"), {})  # noqa: S102 - our own example
        (kept,) = console.store.claims(ClaimFilter())
        words = console.store.history(kept.id)["corrections"]
    said = capsys.readouterr().out
    assert "pole leans right 0.93" in said
    assert said.endswith("The pole leans right.\n")
    assert [(word["person"], word["verdict"]) for word in words] == [("ada", "verified")]

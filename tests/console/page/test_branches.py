"""Branches on the page: seen side by side, with an interval over moments, and asked for."""

import json
import sys

import pytest
from playwright.sync_api import expect

from interlatent_live.console import branches as module
from interlatent_live.console.branches import BranchFolder, BranchJobs
from interlatent_live.console.control_link import ControlLink
from interlatent_live.console.sessions import Sessions
from interlatent_live.console.users import Users
from interlatent_live.feed.documents import HookPointStatus, Topic
from interlatent_live.zoo.entry import DATA
from tests.console.page.kit import WITHIN_MS
from tests.support.branched import POLICY, TRANSCODER, branch_document
from tests.support.console import TOKEN, RunningConsole
from tests.support.feeds import agents_document

pytestmark = pytest.mark.browser

NOBODY = "tcp://127.0.0.1:9"
PLAYS = "import sys; open(sys.argv[sys.argv.index('--out') + 1], 'w').write(sys.argv[1])"


@pytest.fixture
def console(tmp_path, monkeypatch):
    folder = tmp_path / "branches"
    folder.mkdir()
    for seed in range(8):
        text = json.dumps(branch_document(seed=seed, shift=0.5 + 0.01 * seed))
        (folder / f"{seed}.json").write_text(text, encoding="utf-8")
    new = json.dumps(branch_document(seed=40, value=9.0))
    monkeypatch.setattr(
        module, "service_command", lambda *a: (sys.executable, "-c", PLAYS, new, *a)
    )
    jobs = BranchJobs(folder, DATA / "policies", (DATA / "transcoders",))
    with RunningConsole(
        tmp_path,
        control=ControlLink(NOBODY, bytes(32)),
        sessions=Sessions(tmp_path, TOKEN, Users(tmp_path)),
        branches=(BranchFolder(folder), jobs),
    ) as one:
        hook = HookPointStatus("hidden.1", TRANSCODER, 128, 0.1, 0.2, 1)
        one.broadcast.publish(
            Topic.AGENTS, 1, agents_document(policy_hash=POLICY, hook_points=[hook])
        )
        yield one
    jobs.close()


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_branches_are_seen_and_played(opened, console, scheme):
    one = opened(f"{console.url}/", color_scheme=scheme)
    page = one.page
    page.keyboard.press("9")
    together = page.locator("section", has_text="Return, with minus without").locator("tbody tr")
    expect(together).to_have_count(1, timeout=WITHIN_MS)
    expect(together.locator(".forest")).to_contain_text("0.515 …")
    card = page.locator(".card", has_text="Play branches")
    expect(card).to_contain_text("Sign in to have branches played.")
    one.sign_in(TOKEN)
    card.get_by_label("feature at hidden.1").fill("12")
    card.get_by_label("moments").fill("1")
    expect(card).to_contain_text("say why")
    card.get_by_label("reason, for the audit").fill("to see")
    card.get_by_role("button", name="Play").click()
    expect(card).to_contain_text(
        "1 of 1 moments of steer hidden.1/12 2 were played", timeout=WITHIN_MS
    )
    expect(page.locator("td", has_text="steer hidden.1/12 9.0").first).to_be_visible()
    one.picture(f"branches-{scheme}")
    found = one.barriers()
    page.get_by_role("link", name="step 50 of seed 3").click()
    expect(page.locator(".card", has_text="What differs")).to_contain_text(
        "4 steps after", timeout=WITHIN_MS
    )
    overlay = page.locator(".overlay", has_text="pole_angle")
    overlay.get_by_role("button", name="table").click()
    expect(overlay.locator("tbody tr").last).to_contain_text("4.77")
    one.picture(f"branch-{scheme}")
    assert found + one.barriers() == []
    assert one.complaints == []

"""Stepping in from the page: the whole story of an operator, in a real browser, on real agents."""

import json
import re
import secrets
import time

import pytest
from playwright.sync_api import expect

from interlatent_live.audit.log import LOG
from interlatent_live.console.users import Users
from interlatent_live.control.wire import Role
from tests.console.page.kit import WITHIN_MS, Console, Demo, WalkerOnItsWay, walkers_transcoder
from tests.support.control_kit import HOOK

pytestmark = pytest.mark.browser

LEASE_S = 4.0
PASSWORD = secrets.token_urlsafe(12)
ALERT = """
[[rule]]
name = "leaning"
when = ["metric:tilt > 0.3 clear 0.2"]
severity = "critical"
summary = "The walker leans."
agent = "walker"
"""


@pytest.fixture(scope="module")
def console(tmp_path_factory):
    """Services without the demo's agent; what is larger than 60 % needs a second person."""
    folder = walkers_transcoder(tmp_path_factory.mktemp("walker"))
    with Console(**{"encoder.transcoders": [str(folder)], "control.second_above": 0.6}) as one:
        users = Users(one.state_folder)
        users.add("bob", Role.OPERATOR, PASSWORD)
        users.add("vic", Role.VIEWER, PASSWORD)
        yield one


@pytest.fixture
def walker(console, tmp_path):
    with WalkerOnItsWay(console, tmp_path) as one:
        yield one


def bar(page):
    return page.locator(".hand .oversight")


def goto_walker(one, walker, view="agent", query=""):
    """The newest run of the walker: earlier tests' walkers are gone, and the console knows it."""
    page = one.page
    card = page.locator(".fleet .card", has_text="walker").filter(has_text="acting").first
    expect(card).to_be_visible(timeout=WITHIN_MS)
    run = card.get_attribute("data-run")
    page.goto(f"{one.url}#/{view}/{run}/{HOOK}{query}")
    expect(bar(page)).to_contain_text("acts by its policy", timeout=WITHIN_MS)
    assert walker.moves()
    return page


def put_into_force(page, *, reason, seconds="30", share=None, features=("3",)):
    for i, feature in enumerate(features):
        page.get_by_label("feature", exact=True).nth(i).fill(feature)
    page.get_by_label(re.compile("^seconds")).fill(seconds)
    if share is not None:
        page.locator("input[type=range]").fill(str(share))
    page.locator("form").get_by_label("reason, for the audit").fill(reason)
    page.get_by_role("button", name="Put into force").click()


def audit(console):
    lines = (console.state_folder / "audit" / LOG).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def in_time(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """The demo's agent beside the walker, and a rule that watches the walker."""
    folder = walkers_transcoder(tmp_path_factory.mktemp("both"))
    rules = folder / "alerts.toml"
    rules.write_text(ALERT, encoding="utf-8")
    flags = {"encoder.transcoders": [str(folder)], "correlator.alert_rules": str(rules)}
    with Demo(**flags) as demo, WalkerOnItsWay(demo, folder) as walker:
        yield demo, walker


def test_an_operators_day(opened, everything):
    demo, walker = everything
    one = opened(demo.url)
    one.sign_in(demo.token)
    sees_several_agents_and_what_one_does(one)
    feature = finds_the_feature_and_tries_it(one)
    sees_what_was_different(one, feature)
    sees_an_alert(one, walker)
    answers_a_question(one, walker)
    stops_it_with_a_key(one, walker)
    shows_every_step_later(one)
    assert one.complaints == []


def sees_several_agents_and_what_one_does(one):
    page = one.page
    expect(page.locator(".fleet .card")).to_have_count(2, timeout=WITHIN_MS)
    one.picture("story-1-fleet")
    page.get_by_role("link", name="cartpole-demo").first.click()
    expect(page.locator(".narration li").first).to_be_visible(timeout=180_000)
    expect(page.locator(".doing")).to_contain_text("push")
    one.picture("story-2-agent")


def finds_the_feature_and_tries_it(one):
    page = one.page
    page.keyboard.press("3")
    page.locator("tbody tr", has_text="verified").first.get_by_role("link").click(timeout=180_000)
    page.get_by_role("link", name="Try it").click()
    feature = page.get_by_label("feature", exact=True).input_value()
    expect(page.locator("form")).to_contain_text("when on, mean", timeout=WITHIN_MS)
    one.picture("story-3-form")
    put_into_force(page, reason="is it this one?", seconds="30", features=(feature,))
    in_force = page.locator(".inforce tbody tr")
    expect(in_force).to_have_count(1, timeout=WITHIN_MS)
    expect(in_force).to_contain_text("this page")
    expect(page.locator("form")).to_contain_text("This page renews the lease")
    return feature


def sees_what_was_different(one, feature):
    page = one.page
    expect(page.locator(".compared tbody tr").first).to_be_visible(timeout=WITHIN_MS)
    in_words = re.compile("higher|lower|no clear difference|too little")
    expect(page.locator(".words").first).to_have_text(in_words)
    page.wait_for_timeout(8000)
    one.picture("story-4-before-and-after")
    page.get_by_role("link", name=f"feature {feature}", exact=True).first.click()
    expect(page.get_by_role("heading", name="Interventions on this feature")).to_be_visible()
    expect(page.locator(".inforce tbody tr")).to_have_count(1)


def sees_an_alert(one, walker):
    page = one.page
    walker.tilt = 0.4
    expect(page.get_by_role("navigation")).to_contain_text("1 firing", timeout=WITHIN_MS)
    page.get_by_role("link", name=re.compile("Alerts")).click()
    expect(page.locator("[data-phase=firing]")).to_contain_text("The walker leans.")
    one.picture("story-5-alert")


def answers_a_question(one, walker):
    page = one.page
    walker.tilt = 1.0
    asked = page.locator(".asked")
    expect(asked).to_contain_text("near the edge", timeout=WITHIN_MS)
    assert in_time(lambda: not walker.moves())
    one.picture("story-6-question")
    walker.tilt = 0.0
    page.keyboard.press("a")
    page.keyboard.press("Enter")
    expect(asked).to_have_count(0, timeout=WITHIN_MS)
    assert in_time(walker.moves)


def stops_it_with_a_key(one, walker):
    page = one.page
    page.keyboard.press("1")
    page.get_by_role("link", name="walker", exact=True).click()
    expect(bar(page)).to_contain_text("acts by its policy", timeout=WITHIN_MS)
    page.keyboard.press("Shift+S")
    expect(bar(page)).to_contain_text("stopped, latched", timeout=WITHIN_MS)
    assert in_time(lambda: not walker.moves())
    one.picture("story-7-stopped")


def shows_every_step_later(one):
    page = one.page
    page.keyboard.press("7")
    expect(page.locator(".checked")).to_have_attribute("data-ok", "true", timeout=WITHIN_MS)
    table = page.locator(".audit tbody")
    for words in (
        "is it this one?",
        "approve on the console's page",
        "stop on the console's page",
    ):
        expect(table).to_contain_text(words)
    one.picture("story-8-audit")
    row = table.locator("tr", has_text="is it this one?").first
    row.get_by_role("link", name="its story").click()
    expect(table.locator("tr", has_text="applied").first).to_be_visible()
    kinds = table.locator(".kind").all_inner_texts()
    assert {"permitted", "applied"} <= set(kinds)
    assert kinds.index("applied") < kinds.index("permitted"), "newest first"


def test_who_may_not_is_told_why(opened, console, walker):
    one = opened(console.url)
    page = goto_walker(one, walker)
    stop = bar(page).get_by_role("button", name="Stop")
    expect(stop).to_be_disabled()
    expect(bar(page)).to_contain_text("Sign in to command.")
    page.keyboard.press("Shift+S")
    expect(page.locator(".sayings")).to_contain_text("stop: Sign in to command.")
    one.sign_in(name="vic", password=PASSWORD)
    expect(bar(page)).to_contain_text("signed in as a viewer")
    expect(stop).to_be_disabled()
    assert walker.moves()
    page.get_by_role("button", name="Sign out").click()
    page.get_by_role("button", name="Sign in").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("with the console's token").check()
    dialog.get_by_label("token", exact=True).fill("guessed")
    dialog.get_by_role("button", name="Sign in").click()
    expect(dialog.get_by_role("alert")).not_to_be_empty(timeout=WITHIN_MS)
    expect(dialog.get_by_label("token", exact=True)).to_have_value("")


def test_hold_step_and_resume_say_what_they_are(opened, console, walker):
    one = opened(console.url)
    page = goto_walker(one, walker)
    one.sign_in(console.token)
    page.keyboard.press("Shift+H")
    expect(bar(page)).to_contain_text(
        re.compile(r"holding, becomes a stop in \d"), timeout=WITHIN_MS
    )
    assert in_time(lambda: not walker.moves())
    before = walker.moved_at
    bar(page).get_by_role("button", name="Step").click()
    assert in_time(lambda: walker.moved_at > before)
    assert in_time(lambda: not walker.moves())
    # To resume asks, and a reason is needed.
    page.keyboard.press("Shift+R")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("act by its policy again?")
    resume = dialog.get_by_role("button", name="Resume")
    expect(resume).to_be_disabled()
    assert not walker.moves()
    dialog.get_by_label("reason, for the audit").fill("looked at it")
    resume.click()
    expect(dialog).to_have_count(0, timeout=WITHIN_MS)
    expect(bar(page)).to_contain_text("acts by its policy", timeout=WITHIN_MS)
    assert in_time(walker.moves)


def test_before_and_after_is_told_with_intervals(opened, console, walker):
    one = opened(console.url)
    one.sign_in(console.token)
    page = goto_walker(one, walker, "interventions")
    page.wait_for_timeout(20_000)  # what was before must have been seen
    page.locator(".change select").select_option("clamp")
    page.get_by_label("held at").fill("9")
    put_into_force(page, reason="held high", seconds="45", share=60)
    row = page.locator(".compared tbody tr", has_text="position")
    expect(row.locator(".words")).to_have_text(re.compile("higher|lower"), timeout=WITHIN_MS)
    expect(row.locator(".forest")).to_contain_text("…")
    assert one.complaints == []


def test_a_change_decided_on_an_old_state_is_refused_in_words(opened, console, walker):
    ada = opened(console.url)
    bob = opened(console.url)
    ada.sign_in(console.token)
    bob.sign_in(name="bob", password=PASSWORD)
    pages = [goto_walker(one, walker, "interventions") for one in (ada, bob)]
    # Ada begins to decide; bob is faster.
    pages[0].get_by_label("feature", exact=True).fill("3")
    put_into_force(pages[1], reason="bob was here", features=("5",))
    expect(pages[1].locator(".inforce tbody tr")).to_have_count(1, timeout=WITHIN_MS)
    expect(pages[0].locator(".inforce tbody tr")).to_contain_text("bob", timeout=WITHIN_MS)
    put_into_force(pages[0], reason="ada's idea")
    expect(pages[0].locator("form")).to_contain_text("Refused:", timeout=WITHIN_MS)
    expect(pages[0].locator("form")).to_contain_text("has changed since you began to decide")
    ada.picture("two-operators")
    pages[0].get_by_role("button", name="I have looked again").click()
    pages[0].get_by_role("button", name="Put into force").click()
    expect(pages[0].locator(".inforce tbody tr")).to_have_count(2, timeout=WITHIN_MS)
    pages[0].get_by_role("button", name="Revert steer first/5").click()
    expect(pages[1].locator(".inforce tbody tr")).to_have_count(1, timeout=WITHIN_MS)
    expect(pages[1].locator(".inforce")).to_contain_text("steer first/3")


def test_a_large_change_waits_for_another_person(opened, console, walker):
    ada, bob = opened(console.url), opened(console.url)
    ada.sign_in(console.token)
    bob.sign_in(name="bob", password=PASSWORD)
    pages = [goto_walker(one, walker, "interventions") for one in (ada, bob)]
    put_into_force(pages[0], reason="a large one", share=100)
    expect(pages[0].locator("form")).to_contain_text("Waiting:", timeout=WITHIN_MS)
    waiting = pages[0].locator(".waiting li")
    expect(waiting).to_contain_text("second person must be another one", timeout=WITHIN_MS)
    expect(waiting.get_by_role("button", name="Agree")).to_be_disabled()
    pages[1].locator(".waiting li").get_by_role("button", name="Agree").click(timeout=WITHIN_MS)
    expect(pages[0].locator(".inforce tbody tr")).to_have_count(1, timeout=WITHIN_MS)
    expect(waiting).to_have_count(0)


def test_a_closed_page_ends_what_it_began(opened, console, tmp_path):
    ada, watcher = opened(console.url), opened(console.url)
    ada.sign_in(console.token)
    # A lease that a reload on a busy machine does not outlast.
    with WalkerOnItsWay(console, tmp_path, lease_s=LEASE_S) as walker:
        page = goto_walker(ada, walker, "interventions")
        other = goto_walker(watcher, walker, "interventions")
        put_into_force(page, reason="until I go", seconds="60")
        rows = other.locator(".inforce tbody tr")
        expect(rows).to_have_count(1, timeout=WITHIN_MS)
        began = time.monotonic()
        # It is kept by more than its first lease, through a reload too.
        while time.monotonic() - began < LEASE_S:
            renewed(page)
        with page.expect_response(is_renewal, timeout=WITHIN_MS):
            page.reload()
        expect(rows).to_have_count(1)
        ada.context.close()
        # The 60 s are far from over: it is the lease that ends it.
        expect(rows).to_have_count(0, timeout=30_000)
        assert in_time(lambda: last_of(console, walker) == "agent-lease_lost")


def is_renewal(response):
    return response.url.endswith("/control/lease") and response.ok


def renewed(page):
    """Once more the page has renewed its lease."""
    with page.expect_response(is_renewal, timeout=WITHIN_MS):
        pass


def last_of(console, walker):
    """The kind of the newest entry about this life of the walker."""
    return next(one["kind"] for one in reversed(audit(console)) if walker.boot_id in str(one))


def test_conditions_are_read_back_and_a_mistake_is_one_sentence(opened, console, walker):
    one = opened(console.url)
    one.sign_in(console.token)
    page = goto_walker(one, walker, "interventions")
    when = page.get_by_label(re.compile("^only while"))
    while_feature = page.get_by_label("and only while feature")
    force = page.get_by_role("button", name="Put into force")
    said = page.locator(".said")
    page.get_by_label("feature", exact=True).fill("3")
    page.locator("form").get_by_label("reason, for the audit").fill("with conditions")
    when.fill("tild < 1")
    expect(said).to_contain_text("there is no metric 'tild'", timeout=WITHIN_MS)
    expect(force).to_be_disabled()
    when.fill("tilt < 1")
    expect(said).to_contain_text("tilt is below 1 rad", timeout=WITHIN_MS)
    expect(force).to_be_enabled()
    while_feature.fill("9999")
    expect(page.locator("form .whynot")).to_contain_text("there is no feature 9999")
    while_feature.fill("5")
    activation = page.get_by_label("activation", exact=True)
    activation.fill("")
    expect(page.locator("form .whynot")).to_contain_text("say which activation feature 5 must be")
    activation.fill("0.2")
    force.click()
    row = page.locator(".inforce tbody tr")
    expect(row).to_contain_text("when tilt < 1 while feature 5 > 0.2", timeout=WITHIN_MS)
    page.get_by_role("button", name="Revert", exact=False).first.click()
    expect(row).to_have_count(0, timeout=WITHIN_MS)
    assert one.complaints == []


def test_a_question_is_announced_and_answered_in_every_way(opened, console, walker):
    ada, bob = opened(console.url), opened(console.url)
    ada.sign_in(console.token)
    bob.sign_in(name="bob", password=PASSWORD)
    pages = [goto_walker(one, walker) for one in (ada, bob)]
    asked = [page.locator(".asked") for page in pages]

    def ask():
        walker.tilt = 1.0
        for one in asked:
            expect(one).to_contain_text("near the edge", timeout=WITHIN_MS)
        walker.tilt = 0.0

    ask()
    alert = pages[0].get_by_role("alert").filter(has_text="holds and asks")
    expect(alert).to_contain_text("walker holds and asks before it acts: near the edge")
    expect(asked[0].get_by_role("timer")).to_have_text(re.compile(r"\d+ s left, then it stops"))
    ada.picture("question")
    # Another action for one step.
    asked[1].get_by_label("action instead").fill("0.5, \N{MINUS SIGN}0.5")
    asked[1].get_by_role("button", name="Approve with it").click()
    expect(asked[0]).to_have_count(0, timeout=WITHIN_MS)
    assert in_time(walker.moves)
    # Handed to an admin, whom alone it then obeys.
    ask()
    asked[1].get_by_role("button", name="Escalate").click()
    expect(asked[1]).to_contain_text("an admin must answer it", timeout=WITHIN_MS)
    expect(asked[1].get_by_role("button", name="Approve", exact=True)).to_be_disabled()
    asked[0].get_by_role("button", name="Approve", exact=True).click()
    expect(asked[1]).to_have_count(0, timeout=WITHIN_MS)
    assert in_time(walker.moves)
    # Refused, it stays held.
    ask()
    asked[1].get_by_role("button", name="Refuse").click()
    expect(asked[0]).to_have_count(0, timeout=WITHIN_MS)
    expect(bar(pages[0])).to_contain_text("holding", timeout=WITHIN_MS)
    assert in_time(lambda: not walker.moves())
    pages[0].wait_for_timeout(500)
    assert not walker.moves()


def test_a_stop_reaches_the_agent_when_the_console_is_back(opened, console, walker):
    one = opened(console.url)
    one.sign_in(console.token)
    page = goto_walker(one, walker)
    page.context.set_offline(True)
    page.keyboard.press("Shift+S")
    expect(bar(page).get_by_role("alert")).to_contain_text(
        "stop not delivered yet", timeout=WITHIN_MS
    )
    assert walker.moves()
    page.context.set_offline(False)
    expect(bar(page)).to_contain_text("stopped, latched", timeout=WITHIN_MS)
    assert in_time(lambda: not walker.moves())


def test_the_console_is_killed_under_an_operator(opened, console, walker):
    one = opened(console.url)
    one.sign_in(console.token)
    page = goto_walker(one, walker)
    console.kill("console")
    expect(page.locator("header .state")).to_contain_text("feed", timeout=WITHIN_MS)
    expect(page.locator(".who")).to_be_visible(timeout=WITHIN_MS)
    expect(bar(page)).to_contain_text("acts by its policy", timeout=WITHIN_MS)
    page.keyboard.press("Shift+H")
    expect(bar(page)).to_contain_text("holding", timeout=WITHIN_MS)
    assert in_time(lambda: not walker.moves())
    page.keyboard.press("7")
    expect(page.locator(".audit tbody")).to_contain_text(
        "hold on the console's page", timeout=WITHIN_MS
    )


def test_hostile_words_of_people_and_links_stay_words(opened, console, walker):
    one = opened(console.url)
    one.sign_in(console.token)
    page = goto_walker(one, walker, "interventions", "?features=3,<img>,-1,4")
    expect(page.get_by_label("feature", exact=True)).to_have_count(2)
    markup = "<img src=x onerror=window.harmed=1>"
    put_into_force(page, reason=markup, seconds="5", features=("3", "4"))
    expect(page.locator(".inforce tbody tr")).to_have_count(1, timeout=WITHIN_MS)
    page.keyboard.press("Escape")
    page.goto(f"{console.url}#/audit")
    expect(page.locator(".audit tbody")).to_contain_text(markup, timeout=WITHIN_MS)
    page.goto(f"{console.url}#/audit?kind=%3Cscript%3E&actor=%25&command=..%2F..&entry=x")
    expect(page.locator("h1")).to_have_text("Audit")
    page.goto(f"{console.url}#/interventions/%E0%A4%A/{HOOK}?command=%3Cimg%3E")
    expect(page.locator("h1")).to_be_visible()
    assert page.evaluate("window.harmed") is None
    assert any(row["body"].get("reason") == markup for row in audit(console))


@pytest.mark.parametrize(("scheme", "width"), [("dark", 1280), ("light", 390)])
def test_stepping_in_has_no_serious_barrier(opened, console, walker, scheme, width):
    size = {"width": width, "height": 800}
    one = opened(console.url, color_scheme=scheme, viewport=size)
    one.page.get_by_role("button", name="Sign in").click()
    found = {"sign in": one.barriers()}
    one.page.keyboard.press("Escape")
    one.sign_in(console.token)
    page = goto_walker(one, walker, "interventions", "?features=3,5")
    put_into_force(page, reason="to look at it", seconds="40", features=("3", "5"))
    expect(page.locator(".inforce tbody tr")).to_have_count(1, timeout=WITHIN_MS)
    page.wait_for_timeout(4000)
    one.picture(f"interventions-{scheme}-{width}")
    found["interventions"] = one.barriers()
    walker.tilt = 1.0
    expect(page.locator(".asked")).to_be_visible(timeout=WITHIN_MS)
    one.picture(f"asked-{scheme}-{width}")
    found["asked"] = one.barriers()
    walker.tilt = 0.0
    page.locator(".asked").get_by_role("button", name="Refuse").click()
    expect(page.locator(".asked")).to_have_count(0, timeout=WITHIN_MS)
    page.keyboard.press("Escape")
    bar(page).get_by_role("button", name="Resume").click()
    one.picture(f"resume-{scheme}-{width}")
    found["resume"] = one.barriers()
    page.keyboard.press("Escape")
    page.goto(f"{one.url}#/audit")
    expect(page.locator(".audit tbody tr").first).to_be_visible(timeout=WITHIN_MS)
    one.picture(f"audit-{scheme}-{width}")
    found["audit"] = one.barriers()
    assert {name: these for name, these in found.items() if these} == {}
    overflow = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(overflow) <= 0, "nothing is cut off at the side"

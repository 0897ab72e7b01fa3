"""What an operator does on the page, in a real browser, against real services and a real agent."""

import random
import re
import time

import pytest
from playwright.sync_api import expect

from tests.console.page.kit import WITHIN_MS

pytestmark = pytest.mark.browser

VIEWS = ("fleet", "agent", "claims", "map", "interventions", "alerts", "audit")
MOMENTS = 10
RIGHT_AT_LEAST = 9


@pytest.fixture
def agent_page(opened, demo):
    one = opened(demo.url)
    one.page.get_by_role("link", name="cartpole-demo").click(timeout=WITHIN_MS)
    expect(one.page.get_by_role("heading", name="cartpole-demo")).to_be_visible()
    expect(one.page.locator(".doing")).to_contain_text("of episode", timeout=WITHIN_MS)
    return one


def facts(page):
    """The terms of the section *Now* with what is said of each."""
    text = page.evaluate(
        "() => [...document.querySelectorAll('.doing dl > div')]"
        ".map(one => [one.querySelector('dt').innerText, one.querySelector('dd').innerText])"
    )
    return dict(text)


def test_the_fleet_says_how_every_agent_is(opened, demo):
    page = opened(demo.url).page
    card = page.locator(".fleet .card")
    expect(card).to_have_count(1, timeout=WITHIN_MS)
    for words in ("CartPole-v1", "4 copies", "acting", "lost, undeclared", "hidden.1"):
        expect(card).to_contain_text(words)
    page.get_by_role("searchbox").fill("no such agent")
    expect(card).to_have_count(0)


def test_a_first_time_viewer_reads_off_what_happens(agent_page, demo):
    # A claim has been made once the strongest feature has words of its own.
    page = agent_page.page
    expect(page.locator(".doing")).to_contain_text(re.compile(r"feature \d+: \w"), timeout=120_000)
    choose = random.Random(7)
    right, said = 0, []
    for _ in range(MOMENTS):
        page.wait_for_timeout(choose.uniform(300, 1500))
        now = facts(page)
        said.append(now)
        right += is_right(now, demo)
    assert right >= RIGHT_AT_LEAST, said


def is_right(now, demo):
    """Whether action, feature and metric are those that the encoder published for that step."""
    step = re.fullmatch(r"(\d+) of episode (\d+)", now["step"])
    feature = re.match(r"feature (\d+)", now["strongest known feature"])
    if step is None or feature is None:
        return False
    key = (int(step[2]), int(step[1]))
    deadline = time.monotonic() + 2
    while key not in demo.metrics and time.monotonic() < deadline:
        time.sleep(0.02)
    names = [one["name"] for one in demo.state.agents.agents[0].metrics]
    metrics = dict(zip(names, demo.metrics[key], strict=True))
    pushed = "push right" if metrics["action_push_right"] == 1 else "push left"
    spoken = re.findall(r"(\w+) (\u2212?[\d.]+(?:e\u2212?\d+)?)", now["what that speaks of"])
    shown = [(name, float(value.replace("\u2212", "-"))) for name, value in spoken]
    lately = set().union(*(demo.active.get((key[0], key[1] - i), set()) for i in range(6)))
    return (
        now["action (action_push_right)"] == pushed
        and int(feature[1]) in lately
        and len(shown) > 0
        and all(value == pytest.approx(metrics[name], rel=0.01, abs=1e-6) for name, value in shown)
    )


def test_pausing_stops_the_picture_and_loses_nothing(agent_page):
    page = agent_page.page
    page.keyboard.press("p")
    expect(page.get_by_role("button", name="Go on")).to_be_visible()
    expect(page.locator(".strip")).to_contain_text("drawing paused")
    page.wait_for_timeout(500)
    before = facts(page)["step"]
    page.wait_for_timeout(1000)
    assert facts(page)["step"] == before
    page.keyboard.press("p")
    page.wait_for_timeout(1000)
    assert facts(page)["step"] != before
    assert "too fast for this page" not in page.locator(".strip").inner_text()


def test_a_chart_has_its_numbers_behind_it(agent_page):
    page = agent_page.page
    chart = page.locator(".chart").first
    chart.get_by_role("button", name="table").click()
    expect(chart.locator("tbody tr")).to_have_count(12)
    value = chart.locator("tbody tr td").nth(1).inner_text()
    assert re.fullmatch(r"\u2212?[\d.]+(e\u2212?\d+)?", value)


def test_a_feature_tells_its_claim_and_what_it_goes_with(opened, demo):
    page = opened(demo.url).page
    page.get_by_role("link", name="Claims", exact=True).click(timeout=WITHIN_MS)
    page.locator("tbody tr", has_text="verified").first.get_by_role("link").click(timeout=120_000)
    expect(page.locator("h1")).to_contain_text("Feature")
    expect(page.locator(".card")).to_contain_text("on when")
    expect(page.get_by_role("img", name="activations when on")).to_be_visible(timeout=WITHIN_MS)
    table = page.locator("section", has_text="What it goes with").locator("tbody tr")
    expect(table).to_have_count(17, timeout=WITHIN_MS)
    expect(table.first).to_contain_text("…")
    # The place can be given to somebody else.
    again = opened(page.url).page
    expect(again.locator("h1")).to_have_text(page.locator("h1").inner_text(), timeout=WITHIN_MS)


def test_a_persons_word_passes_the_same_gate_and_is_kept(opened, demo):
    one = opened(demo.url)
    page = one.page
    page.get_by_role("link", name="Claims", exact=True).click(timeout=WITHIN_MS)
    page.locator("tbody tr", has_text="verified").first.get_by_role("link").click(timeout=120_000)
    page.get_by_text("Your word").click()
    word = page.locator(".word")
    claim = word.get_by_role("button", name="Claim it")
    expect(word).to_contain_text("Sign in to write")
    word.get_by_label("on when").fill("pole_angle > 0 and nonsense > 1")
    expect(claim).to_be_disabled()
    one.sign_in(demo.token)
    claim.click()
    expect(word.locator("pre")).to_have_text(
        "pole_angle > 0 and nonsense > 1\n                   ^", timeout=WITHIN_MS
    )
    word.get_by_label("on when").fill("pole_angle > 0")
    claim.click()
    expect(word).to_contain_text("Taken as version", timeout=WITHIN_MS)
    word.get_by_label("note").fill("looks right to me")
    word.get_by_role("button", name="Accept the claim").click()
    expect(word).to_contain_text("says accept", timeout=WITHIN_MS)
    page.get_by_text("History:").click()
    expect(page.locator(".card")).to_contain_text("looks right to me")


def test_the_map_is_sorted_and_searched(opened, demo):
    page = opened(demo.url).page
    page.get_by_role("link", name="Map").click(timeout=WITHIN_MS)
    rows = page.locator(".heat tbody tr")
    expect(rows.nth(10)).to_be_visible(timeout=WITHIN_MS)
    page.get_by_label("sort").select_option("feature")
    numbers = [int(one) for one in rows.locator("th a").all_inner_texts()]
    assert numbers == sorted(numbers)
    page.get_by_role("searchbox").fill(str(numbers[0]))
    expect(rows.first.locator("th a")).to_have_text(str(numbers[0]))
    assert rows.count() < len(numbers)


def test_the_console_dies_under_the_page_and_the_page_goes_on(agent_page, demo):
    page = agent_page.page
    demo.kill("console")
    expect(page.locator("header .state")).to_contain_text("feed", timeout=WITHIN_MS)
    expect(page.locator(".strip")).to_contain_text("steps now", timeout=WITHIN_MS)
    before = facts(page)["step"]
    page.wait_for_timeout(1500)
    assert facts(page)["step"] != before


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_views_have_no_serious_barrier(opened, demo, scheme):
    one = opened(demo.url, color_scheme=scheme, reduced_motion="reduce")
    expect(one.page.locator(".fleet .card")).to_have_count(1, timeout=WITHIN_MS)
    one.sign_in(demo.token)
    found = {}
    for number, view in enumerate(VIEWS, 1):
        one.page.keyboard.press(str(number))
        one.page.wait_for_timeout(3000)
        one.picture(f"{view}-{scheme}")
        if serious := one.barriers():
            found[view] = serious
    assert found == {}
    moving = "() => getComputedStyle(document.querySelector('button')).transitionDuration"
    assert one.page.evaluate(moving) == "0s"
    assert one.complaints == []
    assert all(url.startswith(demo.url) for url in one.requested)


def test_the_keys_are_told_and_the_theme_changes(opened, demo):
    page = opened(demo.url).page
    page.keyboard.press("?")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("pause and go on")
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    page.get_by_role("button", name="Theme").click()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_the_page_shows_something_at_once(opened, demo):
    page = opened(demo.url).page
    expect(page.locator(".fleet .card")).to_have_count(1, timeout=WITHIN_MS)
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0]?.startTime")
    assert paint is not None

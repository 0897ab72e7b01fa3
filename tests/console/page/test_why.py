"""Why this action? On the page, of a real agent: asked, walked by keys, linked to, read aloud."""

import re
import time

import pytest
from playwright.sync_api import expect

from tests.console.page.kit import WITHIN_MS, Demo

pytestmark = pytest.mark.browser

STARTED_WITHIN_S = 200.0


class ShadowedDemo(Demo):
    shadow = True


@pytest.fixture(scope="module")
def demo():
    with ShadowedDemo() as one:
        yield one


@pytest.fixture
def asked(opened, demo):
    """The agent's view with an account; the shadow's process has to import torch first."""
    one = opened(demo.url)
    page = one.page
    page.get_by_role("link", name="cartpole-demo").click(timeout=WITHIN_MS)
    until = time.monotonic() + STARTED_WITHIN_S
    while True:
        page.keyboard.press("w")
        expect(page.locator(".because button")).to_be_enabled(timeout=WITHIN_MS)
        if page.locator("svg.why").is_visible():
            return one
        told = page.locator(".because .problem").inner_text()
        assert re.search(r"no shadow of|still starting|too often|not sampled yet", told), told
        assert time.monotonic() < until, told
        page.wait_for_timeout(2000)


def test_a_decision_is_shown_walked_and_linked_to(asked, opened):
    page = asked.page
    because = page.locator(".because")
    expect(because).to_contain_text(re.compile(r"push (left|right) over push (left|right): \+"))
    expect(because).to_contain_text(re.compile(r"step \d+ of episode \d+, (now|\d+ s ago)"))
    # In words, for whoever cannot see the graph.
    spoken = because.locator("[role=status]")
    expect(spoken).to_contain_text(re.compile(r"rather than push .* features: feature \d+ of hid"))
    expect(spoken).to_contain_text(re.compile(r"before them: (pole|cart)_"))
    # From the action along the heaviest edge to a feature, and on to the observation.
    action = page.get_by_role("img", name=re.compile(r"^push \w+ over push \w+: "))
    expect(action).to_have_attribute("tabindex", "0")
    action.focus()
    focused = "() => document.activeElement.getAttribute('data-kind')"
    assert page.evaluate(focused) == "action"
    page.keyboard.press("ArrowLeft")
    page.wait_for_function(f"() => ({focused})() !== 'action'")
    words = page.evaluate("() => document.activeElement.getAttribute('aria-label')")
    expect(because.locator("[aria-live=polite]")).to_contain_text(words)
    page.locator("svg.why .term[data-kind=feature]").first.focus()
    page.keyboard.press("ArrowLeft")
    page.wait_for_function(f"() => ['observation', 'baseline'].includes(({focused})())")
    # Colour is not alone in saying which way a term pushes.
    against = page.locator("svg.why .edge[data-sign=minus]").first
    expect(against).to_have_css("stroke-dasharray", "7px, 5px")
    step = re.findall(r"step \d+ of episode \d+", because.inner_text())[0]
    again = opened(page.url).page
    expect(again.locator(".because")).to_contain_text(step, timeout=WITHIN_MS)
    expect(again.locator("svg.why")).to_be_visible()
    old = opened(re.sub(r"why=[\d.]+", "why=999999.1", page.url)).page
    expect(old.locator(".because .problem")).to_contain_text("is not held", timeout=WITHIN_MS)


def test_the_tables_behind_the_graph_add_up(asked):
    page = asked.page
    page.locator(".because summary").click()
    tables = page.locator(".because table")
    expect(tables).to_have_count(2)
    number = re.compile(r"[+\u2212]?[\d.]+(?:e[-+\u2212]\d+)?$")

    def value(text):
        return float(number.findall(text.strip())[-1].replace("\u2212", "-"))

    shown = value(page.locator(".because strong").inner_text())
    for table in tables.all():
        assert value(table.locator("caption").inner_text()) == pytest.approx(shown, rel=0.01)
        terms = [value(one) for one in table.locator("tbody td:nth-child(3)").all_inner_texts()]
        assert sum(terms) == pytest.approx(shown, abs=0.02 * max(map(abs, terms)))
    expect(tables.last).to_contain_text("pole_angle")
    expect(tables.last).to_contain_text("rad (")


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_it_has_no_serious_barrier(asked, scheme):
    asked.page.emulate_media(color_scheme=scheme)
    asked.page.locator(".because summary").click()
    asked.picture(f"why-{scheme}")
    assert asked.barriers() == []

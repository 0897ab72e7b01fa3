"""Names that carry markup stay names: on the page nothing of them is ever run."""

import threading

import pytest
from playwright.sync_api import expect

from interlatent_live.agent.tap import Tap
from interlatent_live.stream import HookPointSpec, MetricSpec, Role
from tests.support.system import D_IN, D_OUT, HOOK, POLICY, System, Walker, save, transcoder

pytestmark = pytest.mark.browser

MARKUP = "<img src=x onerror=window.harmed=1>"
SCRIPT = '"><script>window.harmed=1</script>'


@pytest.fixture
def system(tmp_path):
    save(tmp_path, transcoder())
    with System(**{"encoder.transcoders": [str(tmp_path)]}) as one:
        yield one


def test_markup_in_names_is_shown_and_never_run(opened, system):
    tap = Tap(
        [MetricSpec(MARKUP, SCRIPT, Role.STATE), MetricSpec("push", "N", Role.ACTION)],
        agent=MARKUP,
        environment=SCRIPT,
        endpoint=system.settings.endpoints.agents,
        policy_hash=POLICY,
        hook_points=(HookPointSpec(HOOK, D_IN, D_OUT),),
        y_every=1,
    )
    ended = threading.Event()

    def walk():
        with tap:
            walker = Walker(tap)
            while not ended.is_set():
                walker.walk(50, hz=200)

    walking = threading.Thread(target=walk)
    walking.start()
    try:
        one = opened(f"http://{system.settings.console.http}/")
        page = one.page
        card = page.locator(".fleet .card")
        expect(card).to_contain_text(MARKUP, timeout=60_000)
        expect(card).to_contain_text(SCRIPT)
        card.get_by_role("link").click()
        expect(page.locator("h1")).to_have_text(MARKUP)
        expect(page.locator(".chart .name").first).to_have_text(MARKUP, timeout=60_000)
        for key in "34567":
            page.keyboard.press(key)
            page.wait_for_timeout(1500)
        assert page.evaluate("window.harmed") is None
        assert one.complaints == []
    finally:
        ended.set()
        walking.join()

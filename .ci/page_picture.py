"""Take the picture of the console's page that the documentation shows, from a running demo.

``python .ci/page_picture.py [FILE]`` starts the demo's services and agent on free ports, opens the
agent's view in Chromium, waits for a verified claim and a narrated sentence, and writes the picture
(default: ``docs/page.png``).
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Final

from playwright.sync_api import expect, sync_playwright

from interlatent_live.bench.page import ARGUMENTS, NAMES

ROOT: Final = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.console.page.kit import Demo  # noqa: E402 - the tests are beside this folder

WITHIN_MS: Final = 240_000
FILLS_MS: Final = 25_000
"""Until the charts have something to show."""


def main(out: Path) -> None:
    """Write the picture."""
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        raise SystemExit("no Chromium; on Debian: apt-get install chromium")
    with (
        Demo() as demo,  # type: ignore[no-untyped-call] # helpers of tests are untyped
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        page = browser.new_page(viewport={"width": 1280, "height": 1000}, color_scheme="dark")
        page.goto(demo.url)
        page.get_by_role("link", name="cartpole-demo").click(timeout=WITHIN_MS)
        expect(page.locator(".doing")).to_contain_text(
            re.compile(r"feature \d+: \w"), timeout=WITHIN_MS
        )
        expect(page.locator(".narration li").first).to_be_visible(timeout=WITHIN_MS)
        page.wait_for_timeout(FILLS_MS)
        page.screenshot(path=out)
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "page.png")

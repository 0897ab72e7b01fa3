"""Recordings on the page: opened, scrubbed, replayed, searched, in a real browser."""

import re

import pytest
from playwright.sync_api import expect

from interlatent_live.console.control_link import ControlLink
from interlatent_live.console.recordings_routes import RecordingReader
from tests.console.page.kit import WITHIN_MS
from tests.support.console import RunningConsole
from tests.support.feature_stream import HZ
from tests.support.recorded import NAME, ROWS, write_recording

pytestmark = pytest.mark.browser

NOBODY = "tcp://127.0.0.1:9"
OTHER = "other.mcap"


@pytest.fixture(scope="module")
def console(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    write_recording(folder / NAME)
    growing = write_recording(folder / OTHER, rows=200, close=False)
    (folder / "broken.mcap").write_bytes(b"nothing of the kind")
    reader = RecordingReader(folder)
    control = ControlLink(NOBODY, bytes(32))
    with RunningConsole(
        tmp_path_factory.mktemp("state"), control=control, recordings=reader
    ) as one:
        yield one
    reader.close()
    growing.close()


@pytest.fixture
def recording(opened, console):
    one = opened(f"{console.url}/#/recordings/{NAME}?at=10")
    expect(one.page.locator(".doing")).to_contain_text("of episode", timeout=WITHIN_MS)
    return one


def height(page):
    """The newest value of the first chart: the row's number."""
    return float(page.locator(".chart .value").first.inner_text().split()[0].replace(",", ""))


def test_recordings_are_listed_and_one_is_opened(opened, console):
    one = opened(f"{console.url}/")
    page = one.page
    page.keyboard.press("8")
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(3, timeout=WITHIN_MS)
    expect(rows.filter(has_text="broken.mcap")).to_contain_text("does not begin as an MCAP file")
    expect(rows.filter(has_text=OTHER)).to_contain_text("being written, or cut off")
    page.get_by_role("link", name=NAME).click()
    expect(page.get_by_role("heading", name="lander, recorded")).to_be_visible(timeout=WITHIN_MS)
    expect(page.locator(".doing")).to_contain_text("of episode", timeout=WITHIN_MS)
    assert one.complaints == []


def test_without_a_folder_the_view_says_how_to_get_one(opened, tmp_path):
    with RunningConsole(tmp_path, control=ControlLink(NOBODY, bytes(32))) as console:
        one = opened(f"{console.url}/#/recordings")
        expect(one.page.locator("main")).to_contain_text("recorder.folder", timeout=WITHIN_MS)
        assert one.complaints == []
        one.context.close()


def test_a_deep_link_shows_its_moment_with_what_was_said_then(recording):
    page = recording.page
    expect(page.locator(".player .when")).to_have_text(re.compile(r"^0:10\.0 of 0:2"))
    expect(page.locator(".chart .value").first).to_contain_text("500", timeout=WITHIN_MS)
    expect(page.locator(".narration")).to_contain_text("row 400")
    expect(page.locator(".active tbody")).to_contain_text(
        re.compile("weak|pending|verified|no claim")
    )
    expect(page.locator(".picture img")).to_be_visible(timeout=WITHIN_MS)
    chart = page.locator(".chart").first
    chart.get_by_role("button", name="table").click()
    expect(chart.locator("tbody tr")).to_have_count(12)


def test_it_plays_pauses_and_is_scrubbed_by_keys(recording):
    page = recording.page
    before = height(page)
    page.locator("main").focus()
    page.keyboard.press(" ")
    expect(page.locator(".player .state")).to_contain_text("playing")
    page.wait_for_function(
        f"() => parseFloat(document.querySelector('.chart .value').innerText) > {before + HZ / 2}"
    )
    page.keyboard.press(" ")
    expect(page.locator(".player .state")).to_contain_text("stands still")
    stood = float(page.url.split("at=")[1].split("&")[0])
    assert stood > 10.0, "the address says where it stands"
    page.keyboard.press("Shift+ArrowLeft")
    page.wait_for_function(
        f"() => parseFloat(document.querySelector('.chart .value').innerText) < {before}"
    )
    page.wait_for_timeout(300)
    at = height(page)
    page.keyboard.press(".")
    page.wait_for_function(
        f"() => parseFloat(document.querySelector('.chart .value').innerText) === {at + 1}"
    )
    page.keyboard.press(",")
    page.wait_for_function(
        f"() => parseFloat(document.querySelector('.chart .value').innerText) === {at}"
    )
    page.get_by_label("Time in the recording").fill("19")
    page.wait_for_function(
        "() => parseFloat(document.querySelector('.chart .value').innerText) > 900"
    )


def test_moments_like_one_are_found_and_gone_to(recording):
    page = recording.page
    card = page.locator(".card", has_text="Find moments like this")
    card.get_by_label("predicate over metrics").fill("height > 1 and hight < 2")
    card.get_by_role("button", name="Find").click()
    expect(card.locator("pre")).to_have_text(
        "height > 1 and hight < 2\n               ^", timeout=WITHIN_MS
    )
    card.get_by_label("predicate over metrics").fill("height >= 800 and height < 805")
    card.get_by_role("button", name="Find").click()
    expect(card).to_contain_text(f"1 moment in {ROWS:,} steps", timeout=WITHIN_MS)
    card.get_by_role("link").first.click()
    expect(page.locator(".chart .value").first).to_contain_text(
        re.compile(r"^(799|800|801)"), timeout=WITHIN_MS
    )
    card.get_by_label("predicate over metrics").fill("")
    card.get_by_label("feature on").fill("3")
    card.get_by_label("also in the other recordings").check()
    card.get_by_role("button", name="Find").click()
    expect(card).to_contain_text("76 moments in 1,200 steps of 2 recordings", timeout=WITHIN_MS)
    card.get_by_role("link").last.click()
    expect(page.locator(".title")).to_contain_text(OTHER, timeout=WITHIN_MS)


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_recordings_have_no_serious_barrier(opened, console, scheme):
    one = opened(f"{console.url}/#/recordings/{NAME}?at=10&feature=3", color_scheme=scheme)
    expect(one.page.locator(".moments tbody tr").first).to_be_visible(timeout=WITHIN_MS)
    one.picture(f"recording-{scheme}")
    found = one.barriers()
    one.page.goto(f"{console.url}/#/recordings")
    expect(one.page.locator("tbody tr")).to_have_count(3, timeout=WITHIN_MS)
    one.picture(f"recordings-{scheme}")
    assert found + one.barriers() == []
    assert one.complaints == []

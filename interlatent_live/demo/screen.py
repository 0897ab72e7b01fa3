"""How a demo shows itself: the live screen on a terminal, or a progress bar when headless."""

from __future__ import annotations

import html
import tempfile
import time
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from interlatent_live.feed.view import render, room_for

if TYPE_CHECKING:
    from types import TracebackType

    from interlatent_live.config import Settings
    from interlatent_live.demo.run import DemoOptions
    from interlatent_live.feed.state import FeedState

REDRAW_EVERY_S = 0.25


class LiveScreen:
    """The terminal view, redrawn in place four times a second.

    Args:
        options: what the user chose.
        settings: whose feeds are shown.
        open_page: whether a browser is asked to show the console's page as well.
    """

    def __init__(self, options: DemoOptions, settings: Settings, *, open_page: bool) -> None:
        self._console = Console()
        self._live = Live(console=self._console, auto_refresh=False)
        self._options = options
        self._settings = settings
        self._open_page = open_page
        self._drawn = 0.0
        # Private to this user; gone with the screen.
        self._folder = tempfile.TemporaryDirectory(prefix="interlatent-demo-page-")

    def __enter__(self) -> Self:
        self._console.print(
            f"interlatent-live demo: {self._options.env}; Ctrl-C ends it; "
            "from another terminal: interlatent-live watch "
            + " ".join(f"--endpoint {one}" for one in self._unusual_feeds()),
            highlight=False,
        )
        self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.__exit__(kind, error, trace)
        self._folder.cleanup()

    def starting(self, message: str) -> None:
        """Show what is being waited for."""
        self._live.update(message, refresh=True)

    def up(self, url: str) -> None:
        """Leave the console's address above the screen, and open its page if wanted."""
        self._live.console.print(_console_line(url), highlight=False, soft_wrap=True)
        if self._open_page:
            self._open(url)

    def update(self, state: FeedState) -> None:
        """Redraw, if it is time."""
        now = time.monotonic()
        if now - self._drawn >= REDRAW_EVERY_S:
            self._drawn = now
            room = room_for(self._console.height)
            self._live.update(render(state, room=room), refresh=True)

    def _open(self, url: str) -> None:
        """Open the page through a file of ours: what a browser is started with, everybody sees."""
        page = Path(self._folder.name) / "open.html"
        target = html.escape(url, quote=True)
        page.write_text(f'<meta http-equiv="refresh" content="0;url={target}">', encoding="utf-8")
        webbrowser.open(page.as_uri())

    def _unusual_feeds(self) -> tuple[str, ...]:
        from interlatent_live.config import EndpointSettings  # noqa: PLC0415 - only for this line

        feeds = self._settings.endpoints.feeds()
        return () if feeds == EndpointSettings().feeds() else feeds


class PlainScreen:
    """A progress bar on standard error: steps of all copies, and what is waited for."""

    def __init__(self, options: DemoOptions) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._progress.add_task("starting", total=options.steps)

    def __enter__(self) -> Self:
        self._progress.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.__exit__(kind, error, trace)

    def starting(self, message: str) -> None:
        """Show what is being waited for."""
        self._progress.update(self._task, description=message)

    def up(self, url: str) -> None:
        """Leave the console's address above the bar."""
        self._progress.console.print(_console_line(url), highlight=False, soft_wrap=True)

    def update(self, state: FeedState) -> None:
        """Move the bar to the steps that the encoder has encoded."""
        if state.agents is None or not state.agents.agents:
            return
        status = state.agents.agents[-1]
        what = "settling claims" if status.ended else f"explaining {status.environment}"
        self._progress.update(self._task, completed=status.steps_encoded, description=what)


def _console_line(url: str) -> str:
    return f"console: {url}"

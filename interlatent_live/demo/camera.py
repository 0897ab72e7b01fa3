"""Pictures of the demo's first copy, made only in the time that the loop would sleep.

Rendering belongs to the environment's own thread, which is the one that steps. So the camera looks
when a picture is due and when there is at least twice the time left that looking took before; on a
machine that is too busy there are fewer pictures, not slower steps.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from interlatent_live.agent.pictures import Pictures

SHARE: Final = 0.3
"""Weight of the newest look in the estimate of what one costs."""


class Camera:
    """Looks at one environment.

    Args:
        render: gives uint8 [height, width, 3]; the first call, which sets things up, happens here.
        pictures: where pictures go.
    """

    def __init__(self, render: Callable[[], Any], pictures: Pictures) -> None:
        self._render, self._pictures = render, pictures
        self.looks = 0
        render()
        self._cost_s = self._timed()

    def look(self, spare_s: float) -> None:
        """Take a picture, if one is due and there is time to spare."""
        if self._pictures.due and spare_s > 2 * self._cost_s:
            self._cost_s += SHARE * (self._timed() - self._cost_s)
            self.looks += 1

    def close(self) -> None:
        """End what sends the pictures."""
        self._pictures.close()

    def _timed(self) -> float:
        began = time.monotonic()
        rgb = self._render()
        took = time.monotonic() - began
        if rgb is not None:
            self._pictures.offer(rgb)
        return took

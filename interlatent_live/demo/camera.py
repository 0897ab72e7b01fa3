"""Pictures of the demo's first copy, made only in the time that the loop would sleep.

Rendering belongs to the environment's own thread, which is the one that steps. So the camera looks
when a picture is due and there is twice the time left that looking takes, or, when the last picture
has become old, as much as it takes; on a machine that is too busy there are fewer pictures, not
slower steps.

What looking takes is the thread's own time, not the clock's, and the middle one of a few looks: a
look that stood still while others had the processor would otherwise be taken for a dear one, no
look would be begun to learn better, and the picture would stay as it is. (So it was: on a busy
machine one look of 60 ms ended all pictures of an agent with 15 ms to spare in each step.)
"""

from __future__ import annotations

import time
from collections import deque
from statistics import median
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from interlatent_live.agent.pictures import Pictures

OLD_S: Final = 2.0
"""Age of a picture from which the next one is taken wherever it fits."""
LOOKS: Final = 5
"""Newest looks that the estimate of what one takes rests on."""


class Camera:
    """Looks at one environment.

    Args:
        render: gives uint8 [height, width, 3]; the first call, which sets things up, happens here.
        pictures: where pictures go.
    """

    def __init__(self, render: Callable[[], Any], pictures: Pictures) -> None:
        self._render, self._pictures = render, pictures
        self.looks = 0
        self._took_s: deque[float] = deque(maxlen=LOOKS)
        self._seen_at = 0.0
        render()
        for _ in range(3):
            self._see()

    def look(self, spare_s: float) -> None:
        """Take a picture, if one is due and there is time to spare."""
        if not self._pictures.due:
            return
        old = time.monotonic() - self._seen_at > OLD_S
        if spare_s > median(self._took_s) * (1 if old else 2):
            self._see()
            self.looks += 1

    def close(self) -> None:
        """End what sends the pictures."""
        self._pictures.close()

    def _see(self) -> None:
        began = time.thread_time()
        rgb = self._render()
        self._took_s.append(time.thread_time() - began)
        self._seen_at = time.monotonic()
        if rgb is not None:
            self._pictures.offer(rgb)

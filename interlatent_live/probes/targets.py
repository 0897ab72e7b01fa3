"""What a probe is to tell: an event now or ahead, as text, and its labels on recorded rows.

``terminated within 1 s`` is the classic: failure ahead. ``fall_margin < 0.05 within 0.5 s`` and
``left_leg_contact > 0.5`` (now) are others. A row whose future is not known far enough, because its
episode was cut off before the horizon, has no label: it is neither a warning that was right nor one
that was wrong.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from interlatent_live.errors import UserError
from interlatent_live.stream import StepFlag

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

TERMINATED: Final = "terminated"
_TEXT: Final = re.compile(
    r"\s*(?:(?P<event>terminated)|(?P<metric>[A-Za-z_][\w.]*)\s*(?P<op><=|>=|<|>)\s*"
    r"(?P<value>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?))"
    r"(?:\s+within\s+(?P<seconds>\d+\.?\d*|\.\d+)\s*s)?\s*"
)


@dataclass(frozen=True, slots=True)
class Target:
    """An event: termination, or a comparison of one metric; now (0) or within some seconds."""

    metric: str
    operator: str = ""
    value: float = 0.0
    within_s: float = 0.0

    def __str__(self) -> str:
        event = (
            self.metric if not self.operator else f"{self.metric} {self.operator} {self.value:g}"
        )
        return f"{event} within {self.within_s:g} s" if self.within_s else event


def parse_target(text: str) -> Target:
    """Read a target's text.

    Raises:
        UserError: when it is not one.
    """
    match = _TEXT.fullmatch(text)
    if match is None:
        raise UserError(
            f"{text!r} is no target: write 'terminated within 1 s', or a comparison such as "
            "'fall_margin < 0.05' with or without 'within 0.5 s'"
        )
    seconds = float(match["seconds"] or 0.0)
    if match["event"]:
        if seconds <= 0:
            raise UserError("'terminated' needs a horizon: 'terminated within 1 s'")
        return Target(TERMINATED, within_s=seconds)
    return Target(match["metric"], match["op"], float(match["value"]), seconds)


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """Truth of a target on n rows, and which rows have one."""

    positive: NDArray[np.bool_]
    known: NDArray[np.bool_]


def label(
    target: Target,
    *,
    names: Sequence[str],
    metrics: NDArray[np.float64],
    flags: NDArray[np.uint8],
    episode: NDArray[np.integer],
    t: NDArray[np.integer],
    step_seconds: float,
) -> Labels:
    """Labels [n] of rows sorted by episode and, within it, by t.

    An event ahead of row t is one at t' with t ≤ t' < t + H for termination (the step t' ended the
    episode) and t ≤ t' ≤ t + H for a metric, H the horizon in steps.

    Raises:
        UserError: when the metric is not among ``names``, or the horizon is under one step.
    """
    horizon = round(target.within_s / step_seconds) if target.within_s else 0
    if target.within_s and horizon < 1:
        raise UserError(
            f"a horizon of {target.within_s:g} s is under one step of {step_seconds:g} s"
        )
    if target.metric == TERMINATED:
        event = (flags & StepFlag.TERMINATED) != 0
        known_now = np.ones(len(event), bool)
        reach = horizon - 1
    else:
        event, known_now = _compare(target, names, metrics)
        reach = horizon
    ends = (flags & StepFlag.TERMINATED) != 0
    return _ahead(event, known_now, ends, episode=episode, t=t, reach=reach)


def _compare(
    target: Target, names: Sequence[str], metrics: NDArray[np.float64]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    if target.metric not in names:
        raise UserError(f"the dataset has no metric {target.metric!r}; it has {', '.join(names)}")
    column = metrics[:, list(names).index(target.metric)]
    with np.errstate(invalid="ignore"):
        holds = {
            "<": column < target.value,
            "<=": column <= target.value,
            ">": column > target.value,
            ">=": column >= target.value,
        }[target.operator]
    return holds, ~np.isnan(column)


def _ahead(
    event: NDArray[np.bool_],
    known_now: NDArray[np.bool_],
    ends: NDArray[np.bool_],
    *,
    episode: NDArray[np.integer],
    t: NDArray[np.integer],
    reach: int,
) -> Labels:
    """Whether an event lies 0 … reach rows ahead within the unbroken run of an episode."""
    n = len(event)
    index = np.arange(n)
    breaks = np.ones(n, bool)
    if n:
        breaks[:-1] = (np.diff(episode.astype(np.int64)) != 0) | (np.diff(t.astype(np.int64)) != 1)
    last = np.where(breaks, index, n)
    last_of_run = np.minimum.accumulate(last[::-1])[::-1]
    following = np.where(event & known_now, index, n)
    next_event = np.minimum.accumulate(following[::-1])[::-1]
    positive = (next_event <= np.minimum(index + reach, last_of_run)) & known_now
    # Nothing can follow a termination, so a run that ends with one is known to its end.
    complete = ends[np.minimum(last_of_run, max(n - 1, 0))] if n else np.zeros(0, bool)
    known = known_now & (positive | complete | (index + reach <= last_of_run))
    return Labels(positive, known)

"""Questions to a correlator with pages: the answer behind ``GET /profiles`` and its Python twin.

Paging is by key, not by offset: the cursor holds the sort value and address of the last item, so
pages neither repeat nor skip a pair because others changed rank in between. The cursor also
carries the question, and a cursor of another question is refused.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from interlatent_live.errors import UserError

if TYPE_CHECKING:
    from interlatent_live.statistics.correlator import Correlator
    from interlatent_live.statistics.moments import Floats
    from interlatent_live.statistics.profile import ProfileTable

SORTS: Final = ("feature", "density", "r", "abs_r", "effect_size", "auroc", "n_eff")
MAX_LIMIT: Final = 1000


@dataclass(frozen=True, slots=True)
class ProfileQuery:
    """Which feature × metric pairs, in which order."""

    window: str = "all"
    metric: str | None = None
    """Only this metric."""
    features: tuple[int, ...] | None = None
    min_density: float = 0.0
    max_density: float = 1.0
    min_abs_r: float = 0.0
    excludes_zero: bool = False
    """Only pairs whose interval of r lies clear of 0."""
    sort: str = "abs_r"
    descending: bool = True
    limit: int = 50
    cursor: str | None = None


@dataclass(frozen=True, slots=True)
class ProfilePage:
    """One page of flat records; ``next_cursor`` is ``None`` on the last one."""

    items: tuple[dict[str, Any], ...]
    next_cursor: str | None
    matched: int
    """Pairs that match the question, on all pages."""
    window: str
    rows: int
    """Rows the correlator knew when it answered."""


def query_profiles(correlator: Correlator, query: ProfileQuery) -> ProfilePage:
    """Answer one page.

    Raises:
        UserError: for an unknown window, metric or sort, a bad limit or a foreign cursor.
    """
    table = correlator.table(query.features, query.window)
    place, cursor, matched = page_of(table, query)
    records = tuple(table.record(i, m) for i, m in place)
    return ProfilePage(records, cursor, matched, query.window, correlator.counts.rows)


def page_of(  # noqa: C901 - one branch per filter
    table: ProfileTable, query: ProfileQuery
) -> tuple[list[tuple[int, int]], str | None, int]:
    """One page of a table: (row, metric column) of each pair, the next cursor, pairs matched.

    Raises:
        UserError: for an unknown metric or sort, a bad limit or a foreign cursor.
    """
    if query.sort not in SORTS:
        raise UserError(f"cannot sort by {query.sort!r}; use one of {', '.join(SORTS)}")
    if not 1 <= query.limit <= MAX_LIMIT:
        raise UserError(f"limit must lie between 1 and {MAX_LIMIT}")
    shape = table.r.shape
    keep = np.ones(shape, bool)
    if query.metric is not None:
        keep[:] = False
        names = [spec.name for spec in table.specs]
        if query.metric not in names:
            raise UserError(f"there is no metric {query.metric!r}; there are {', '.join(names)}")
        keep[:, names.index(query.metric)] = True
    density = np.nan_to_num(table.density)
    keep &= ((density >= query.min_density) & (density <= query.max_density))[:, None]
    with np.errstate(invalid="ignore"):
        if query.min_abs_r > 0:
            keep &= np.abs(table.r) >= query.min_abs_r
        if query.excludes_zero:
            keep &= (table.lo > 0) | (table.hi < 0)
    column: Floats
    if query.sort == "feature":
        column = np.broadcast_to(table.features[:, None].astype(np.float64), shape)
    elif query.sort == "density":
        column = np.broadcast_to(density[:, None], shape)
    elif query.sort == "abs_r":
        column = np.abs(table.r)
    else:
        column = getattr(table, query.sort)
    rows, metrics = np.nonzero(keep)
    value = column[rows, metrics]
    # Undefined sorts last whichever way; ties by address.
    key = np.where(np.isfinite(value), -value if query.descending else value, np.inf)
    features = table.features[rows]
    order = np.lexsort((metrics, features, key))
    if query.cursor is not None:
        last = _decode(query)
        after = _after(key[order], features[order], metrics[order], last)
        order = order[after:]
    page = order[: query.limit]
    cursor = None
    if len(order) > len(page):
        i = int(page[-1])
        cursor = _encode(query, [float(key[i]), int(features[i]), int(metrics[i])])
    return [(int(rows[i]), int(metrics[i])) for i in page.tolist()], cursor, len(rows)


def _after(key: Floats, features: Any, metrics: Any, last: list[float]) -> int:
    """How many sorted items lie at or before the last one of the page before."""
    before = (key < last[0]) | (
        (key == last[0]) & ((features < last[1]) | ((features == last[1]) & (metrics <= last[2])))
    )
    return int(before.sum())


def _digest(query: ProfileQuery) -> str:
    question = asdict(replace(query, cursor=None, limit=1))
    text = json.dumps(question, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _encode(query: ProfileQuery, last: list[float]) -> str:
    first = "inf" if np.isinf(last[0]) else last[0]
    text = json.dumps([_digest(query), first, *last[1:]])
    return base64.urlsafe_b64encode(text.encode()).decode()


def _decode(query: ProfileQuery) -> list[float]:
    try:
        raw = json.loads(base64.urlsafe_b64decode((query.cursor or "").encode()))
        digest, last = raw[0], [float(item) for item in raw[1:]]
    except (ValueError, TypeError, IndexError, KeyError, binascii.Error) as error:
        raise UserError("the cursor is not one this service gave out") from error
    if digest != _digest(query) or len(last) != 3:
        raise UserError("the cursor belongs to another question")
    return last

"""Pages of lists: where one ends and the next begins, and cursors that belong to their question."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import numpy as np

from interlatent_live.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def page_of_list(
    question: Any, items: list[T], key: Callable[[T], str]
) -> tuple[list[T], str | None]:
    """A page of a list whose order may change between pages: it goes on behind the last item.

    When that item is gone from the list, it goes on at its place.
    """
    start = 0
    if question.cursor is not None:
        last, place = _decode(question, 2)
        keys = [key(item) for item in items]
        start = keys.index(str(last)) + 1 if str(last) in keys else int(place)
    page = items[start : start + question.limit]
    cursor = None
    if start + len(page) < len(items) and page:
        cursor = _encode(question, [key(page[-1]), start + len(page)])
    return page, cursor


def page_by_key(question: Any, items: list[tuple[float, int, int]]) -> tuple[list[int], str | None]:
    """Places of a page of (key, feature, place), ascending by key and feature."""
    if question.cursor is not None:
        last, feature = _decode(question, 2)
        bound = (float(last), int(feature))
        items = [item for item in items if item[:2] > bound]
    page = items[: question.limit]
    cursor = None
    if len(items) > len(page):
        key = page[-1][0]
        cursor = _encode(question, ["inf" if np.isinf(key) else key, page[-1][1]])
    return [item[2] for item in page], cursor


def _digest(question: Any) -> str:
    fields = msgspec.to_builtins(question)
    fields.pop("cursor", None)
    fields.pop("limit", None)
    text = json.dumps(fields, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _encode(question: Any, last: list[Any]) -> str:
    text = json.dumps([_digest(question), *last])
    return base64.urlsafe_b64encode(text.encode()).decode()


def _decode(question: Any, count: int) -> list[Any]:
    try:
        fields: list[Any] = json.loads(base64.urlsafe_b64decode(question.cursor.encode()))
        digest, last = fields[0], fields[1:]
        float(last[-1])
    except (ValueError, TypeError, IndexError, binascii.Error) as error:
        raise UserError("the cursor is not one this service gave out") from error
    if digest != _digest(question) or len(last) != count:
        raise UserError("the cursor belongs to another question")
    return last

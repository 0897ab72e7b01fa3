"""The one error of the client."""

from __future__ import annotations

import msgspec

from interlatent_live.errors import UserError


class ConsoleError(UserError):
    """The console is not there, or refused; the sentence is the console's own where it gave one.

    Attributes:
        status: of HTTP; ``None`` when nobody answered.
        why: a stable word for a refused claim, such as ``predicate``; empty otherwise.
        position: of a mistake in a predicate, in characters from 0; ``None`` elsewhere.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        why: str = "",
        position: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.why = why
        self.position = position


def nobody(url: str) -> ConsoleError:
    """The error when nothing listens."""
    return ConsoleError(
        f"no console answers at {url}; start one with `interlatent-live up`, or set console.http"
    )


def refusal(status: int, body: bytes) -> ConsoleError:
    """The console's own sentence as an error."""
    try:
        said = msgspec.json.decode(body, type=_Said)
    except (msgspec.DecodeError, msgspec.ValidationError):
        said = _Said(f"the console answered {status}")
    return ConsoleError(said.detail, status=status, why=said.why, position=said.position)


class _Said(msgspec.Struct, frozen=True):
    detail: str
    why: str = ""
    position: int | None = None

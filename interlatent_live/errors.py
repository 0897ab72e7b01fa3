"""Errors that are the user's to fix, as opposed to bugs.

A ``UserError`` is one clear sentence that names the thing and the remedy. The command line prints
it without a traceback and exits with 2; every other exception is a bug and keeps its traceback.
"""

from __future__ import annotations


class UserError(Exception):
    """Bad input, a missing resource or a refused request; the message is the whole explanation."""


class MismatchError(UserError):
    """Two things that must belong together do not, such as a transcoder and a policy."""


class CorruptFileError(UserError):
    """A file of ours is truncated, altered or hostile."""


class WireError(UserError):
    """A message that the wire's rules refuse.

    ``reason`` is a short stable word for counters (``kind``, ``version``, ``dtype``, ``length``).
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

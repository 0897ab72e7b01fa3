"""How big a message may be: every bound the codec holds a peer to, in one frozen value.

The bounds of the schema itself (lengths of names, number of hook points) are constants, because a
peer must know them to write version 1; the bounds here are a receiver's own choice and say how much
memory one message can cost it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MAX_NAME: Final = 256
"""Characters in a name of a run, hook point, metric, action or topic."""
MAX_TEXT: Final = 1024
"""Characters in a sentence or a description."""
MAX_HOOK_POINTS: Final = 64
MAX_METRICS: Final = 4096
MAX_WIDTH: Final = 2**24
"""Width of a hook point's input or output, and number of features of a transcoder."""
MAX_RANGES: Final = 256
"""Declared drops, or missing ranges, in one message."""
MAX_STREAMS: Final = 1024
"""Streams acknowledged by one message."""
MAX_DEPTH: Final = 16
"""Nesting of a document's payload."""
MAX_INT: Final = 2**63 - 1
"""Counters and clocks are signed 64-bit everywhere, so no language overflows on them."""
MAX_U32: Final = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Limits:
    """What a receiver accepts in one message.

    The defaults hold a message to about 17 MB: 4,096 rows of two 256-wide hook points in float32.
    A larger model on a trusted link raises ``body_bytes``.
    """

    header_bytes: int = 256 * 1024
    body_bytes: int = 16 * 1024 * 1024
    rows: int = 4096
    document_bytes: int = 1024 * 1024
    picture_bytes: int = 1024 * 1024

    def __post_init__(self) -> None:
        """Refuse limits under which nothing could be said.

        Raises:
            ValueError: when a limit is not positive, or ``rows`` is beyond the 65,536 that the
                16-bit row numbers of sampled outputs can address.
        """
        values = (
            self.header_bytes,
            self.body_bytes,
            self.rows,
            self.document_bytes,
            self.picture_bytes,
        )
        if min(values) < 1:
            raise ValueError("every limit of a message must be at least 1")
        if self.rows > 2**16:
            raise ValueError(f"rows is {self.rows}; a message addresses at most 65,536 rows")

    def message_bytes(self) -> int:
        """The largest frame that may arrive, for the socket's own limit (``ZMQ_MAXMSGSIZE``)."""
        return max(self.header_bytes, self.body_bytes, self.document_bytes, self.picture_bytes)


DEFAULT_LIMITS: Final = Limits()

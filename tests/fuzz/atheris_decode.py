"""Coverage-guided fuzzing of the decoder with atheris (libFuzzer).

The input is a message as in a recording: frames, each behind its length. An input that is not is
taken for a header and, behind the first 64 bytes, a body.
"""

from __future__ import annotations

import sys

import atheris  # type: ignore[import-untyped] # an optional tool, see README.md

with atheris.instrument_imports(include=["interlatent_live.wire"]):
    from interlatent_live.errors import WireError
    from interlatent_live.recordings.framing import split_frames
    from interlatent_live.wire.codec import decode, encode
    from interlatent_live.wire.limits import Limits

LIMITS = Limits(body_bytes=1 << 20, document_bytes=1 << 16)


def one_input(data: bytes) -> None:
    """Decode; a WireError is an answer, everything else is a finding."""
    try:
        frames: list[bytes | memoryview] = [*split_frames(data)]
    except WireError:
        frames = [data[:64], data[64:]]
    try:
        message = decode(frames, LIMITS)
    except WireError:
        return
    encode(message)


def main() -> None:
    """Run until stopped; arguments are libFuzzer's."""
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

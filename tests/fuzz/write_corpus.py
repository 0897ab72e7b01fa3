"""Write the corpus that coverage-guided fuzzing starts from: every test vector."""

from __future__ import annotations

from pathlib import Path

from interlatent_live.recordings.framing import join_frames
from tests.support.wire_vectors import vectors

FOLDER = Path(__file__).parent / "corpus"


def main() -> None:
    """One file a vector; what fuzzers found before stays."""
    FOLDER.mkdir(exist_ok=True)
    for vector in vectors():
        (FOLDER / vector.name).write_bytes(join_frames(vector.frames))


if __name__ == "__main__":
    main()

"""A small recording with everything in it that the page shows."""

import base64

from interlatent_live.recordings import RecordingWriter
from interlatent_live.wire.codec import encode
from interlatent_live.wire.messages import Document, Hello, Picture
from tests.support.feature_stream import HOOK, HZ, START_NS, TRANSCODERS, manifest, message

ROWS = 1000
NAME = "one.mcap"
RUN = "run-1"
LATE_NS = 3_000_000_000
"""The recorder's clock beside the agent's."""
JPEG = base64.b64decode(
    "/9j/4AAQSkZJRgABAQEASABIAAD/2wBDAP////////////////////////////////////////////////////////////"
    "//////////////////////////wAALCAABAAEBAREA/8QAFAABAAAAAAAAAAAAAAAAAAAAA//EABQQAQAAAAAAAAAAAAAA"
    "AAAAAAD/2gAIAQEAAD8AR//Z"
)
"""One pixel."""


def claim(verdict, index=3):
    return {"address": f"{HOOK}/{index}@x", "label": "high", "verdict": verdict, "version": 1}


def write_recording(path, *, rows=ROWS, close=True):
    """A recording of ``rows`` rows in chunks of a second, with words, and a picture at 4 s."""
    writer = RecordingWriter(path, chunk_seconds=1e9)

    def put(one, time_ns):
        writer.write(encode(one), time_ns=time_ns, message=one)

    put(Hello(manifest(), transcoders=TRANSCODERS), START_NS + LATE_NS)
    for first in range(0, rows, 10):
        seconds = (first + 9) / HZ
        now = START_NS + LATE_NS + int(seconds * 1e9)
        put(message(first), now)
        if first % 100 == 0:
            line = {"text": f"row {first}", "references": []}
            said = {
                "run_id": RUN, "agent": "lander", "env": 0, "episode": first // 25, "from_t": 0,
                "to_t": 9, "published_ns": now, "lines": [line],
            }  # fmt: skip
            put(Document("narration", "explainer", said), now)
        if first in {0, 500}:
            claims = [claim("pending" if first == 0 else "verified"), claim("weak", 4)]
            said = {"run_id": RUN, "hook_point": HOOK, "claims": claims}
            put(Document("claims", "explainer", said), now)
        if first == 200:
            put(Picture("boot-1", first, 0, 4, 4, JPEG), now)
        if first % 50 == 40:
            writer.flush()
    writer.flush()
    if close:
        writer.close()
    return writer

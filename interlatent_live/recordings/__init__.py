"""Recordings: MCAP files whose messages are exactly the messages of the wire.

``RecordingWriter`` writes them so that a killed writer loses at most the chunk in the making;
``read_recording`` reads them back through the decoder that also reads the wire.
"""

from __future__ import annotations

from interlatent_live.recordings.reader import (
    RecordedMessage,
    RecordingInfo,
    StreamInfo,
    read_recording,
    recording_info,
    recording_provenance,
)
from interlatent_live.recordings.writer import Compression, RecordingWriter

__all__ = [
    "Compression",
    "RecordedMessage",
    "RecordingInfo",
    "RecordingWriter",
    "StreamInfo",
    "read_recording",
    "recording_info",
    "recording_provenance",
]

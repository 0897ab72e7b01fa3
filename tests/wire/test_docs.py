"""docs/wire.md against the code: nothing that travels may be missing from the page."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from interlatent_live.stream import Role
from interlatent_live.wire import limits, messages
from interlatent_live.wire.sender_link import SenderConfig
from interlatent_live.wire.sockets import SocketTuning
from interlatent_live.wire.tensors import COLUMNS, DTYPES

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "wire.md").read_text(encoding="utf-8")
WORDS = set(re.findall(r"`([^`\n]+)`", PAGE))

HEADERS = [
    messages.HelloHeader,
    messages.ManifestHeader,
    messages.StepsHeader,
    messages.FeaturesHeader,
    messages.DocumentHeader,
    messages.PictureHeader,
    messages.StreamAck,
    *messages.PLAIN_KINDS.values(),
]


@pytest.mark.parametrize("header", HEADERS, ids=lambda header: header.__name__)
def test_every_field_is_on_the_page(header):
    fields = {field.encode_name for field in msgspec.structs.fields(header)}
    assert fields - WORDS == set()


def test_every_word_is_on_the_page():
    kinds = messages.KINDS
    reasons = {reason.value for reason in messages.DropReason}
    roles = {role.value for role in Role}
    tensors = {name for name, _, _ in COLUMNS}
    for words in (kinds, reasons, roles, tensors, set(DTYPES)):
        assert words - WORDS == set()


def test_the_numbers_on_the_page_are_the_codes():
    for number in (
        limits.MAX_NAME,
        limits.MAX_TEXT,
        limits.MAX_HOOK_POINTS,
        limits.MAX_METRICS,
        limits.MAX_RANGES,
        limits.Limits().rows,
    ):
        assert f"{number:,}" in PAGE
    tuning = SocketTuning()
    assert f"`SNDHWM` {tuning.send_queue}" in PAGE
    assert f"No ack for {SenderConfig().peer_timeout:g} s" in PAGE

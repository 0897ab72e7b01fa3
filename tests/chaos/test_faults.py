"""Two faults put to the real path, as ``interlatent-live bench chaos`` puts them all."""

from __future__ import annotations

import pytest

from interlatent_live.bench.chaos.bench import put_to_the_path
from interlatent_live.bench.chaos.faults.network import Cuts
from interlatent_live.bench.chaos.faults.processes import EncoderKilled

pytestmark = pytest.mark.chaos


def test_a_killed_encoder_and_a_cut_network_lose_nothing_in_silence() -> None:
    said: list[str] = []
    rows = put_to_the_path((EncoderKilled, Cuts), 1.0, said.append)
    assert said == ["starting the services", EncoderKilled.name, Cuts.name]
    for row in rows:
        assert row.undeclared == 0, row
        assert row.recovered_s is not None, row
        assert row.sent == row.acknowledged + sum(row.declared.values()), row
        assert row.received > 0, row
        assert not row.leaks, row

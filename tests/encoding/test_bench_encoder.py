from __future__ import annotations

import sys

import pytest

from interlatent_live.bench import encoder
from interlatent_live.bench.registry import BENCHES


@pytest.fixture(autouse=True)
def _short(monkeypatch, tmp_path):
    monkeypatch.setattr(encoder, "BURST_SECONDS", 0.001)
    monkeypatch.delenv(encoder.PEERS_VARIABLE, raising=False)
    monkeypatch.setattr(encoder, "DEFAULT_PEERS", tmp_path / "none")


def test_without_peers_it_says_so_and_shows_the_product():
    report = encoder.run(quick=True)
    assert len(report.rows) == 2 * 2 * 2  # shapes × selections × batches
    assert {row.reference for row in report.rows} == {"NumPy product (µs)"}
    assert all(row.goal == "shown" and row.value > 0 for row in report.rows)
    assert any("absent" in note for note in report.notes)
    assert BENCHES["encoder"] == "interlatent_live.bench.encoder:run"


def test_peers_are_asked_in_their_own_environment_and_set_the_bar(monkeypatch, tmp_path):
    # A stand-in for an environment: an interpreter that answers each request with 1e9 µs.
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(
        f"#!{sys.executable}\nimport sys\nfor line in sys.stdin:\n    print(1e9, flush=True)\n"
    )
    python.chmod(0o700)
    monkeypatch.setenv(encoder.PEERS_VARIABLE, str(tmp_path))
    report = encoder.run(quick=True)
    judged = [row for row in report.rows if row.goal == "ratio <= 1.05"]
    assert len(judged) == 2 * 2 * (2 + 1)  # both peers for TopK, SAELens for thresholds
    assert all(row.met and row.reference_value == 1e9 for row in judged)


def test_the_weights_leave_about_k_features_on():
    weights = encoder.make_weights((64, 512, 16), by_k=False)
    x = encoder.make_rows(200, 64)
    pre = x @ weights.W_enc + weights.b_enc
    assert 12 < (pre > weights.threshold).sum(axis=1).mean() < 20

"""A whole experiment, small: CartPole through a real control service, its audit and its report."""

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

pytest.importorskip("gymnasium")

from interlatent_live import data
from interlatent_live.audit.log import FIRST_KEY, LOG, STATE, read_key, verify
from interlatent_live.errors import CorruptFileError, UserError
from interlatent_live.interventions.experiment.dictionary import augmented
from interlatent_live.interventions.experiment.document import draw, page
from interlatent_live.interventions.experiment.live import Live
from interlatent_live.interventions.experiment.running import run_experiment
from interlatent_live.interventions.experiment.setup import Setup, Sizes, Target
from interlatent_live.transcoders.native import load_transcoder

SETUP = Setup(
    name="CartPole, small",
    policy="cartpole",
    transcoder=str(Path(data.__file__).parent / "transcoders" / "cartpole" / "hidden.1"),
    targets=(Target(metric="mean cart_velocity", direction=1),),
    horizon=30,
    copies=4,
    doses=(-2.0, 2.0),
    biases=(-0.5, 0.5),
    quick=True,
    sizes=Sizes(
        calibration=12, screening=2, selection=4, held_out=8, controls=4, finalists=2,
        candidates=2, per_kind=2,
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiment")
    said = []
    report = run_experiment(SETUP, folder, folder, lambda *what: said.append(what))
    return folder, report, said


def entries(folder):
    lines = (folder / "audit" / LOG).read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_the_plan_stands_in_the_audit_before_the_first_intervention_of_the_test(done):
    folder, report, _ = done
    rows = entries(folder)
    planned = next(row for row in rows if row["kind"] == "preregistered")
    assert planned["n"] == report["preregistered"]["entry"]
    assert planned["body"]["sha256"] == report["plan_sha256"]
    reason = f"plan {report['plan_sha256'][:16]}"
    tested = [row for row in rows if row["kind"] == "permitted" and reason in row["body"]["reason"]]
    # Treatment, off-moments, bias, two doses and six controls.
    assert len(tested) == 3 + 2 + 6
    assert all(row["n"] > planned["n"] for row in tested)
    audit = folder / "audit"
    assert verify(audit / LOG, read_key(audit / FIRST_KEY), state=audit / STATE).entries > 0
    assert report["audit"]["applied"] == report["audit"]["permitted"]
    assert rows[-1]["kind"] == "concluded"


def test_it_reports_every_control_and_says_that_it_was_a_quick_look(done):
    _, report, _ = done
    one = report["hypotheses"][0]
    assert len(one["controls"]) == 6
    assert {item["kind"] for item in one["controls"]} == {
        "isotropic", "activation covariance", "other live features",
    }  # fmt: skip
    norm = report["plan"]["hypotheses"][0]["norm"]
    for item in one["controls"]:
        assert item["steered"] == 0 or item["largest_norm"] == pytest.approx(norm, rel=1e-3)
    assert one["treatment"]["steered"] > 0
    assert set(one["off_target"]) == set(report["plan"]["metrics"]) - {"mean cart_velocity"}
    assert report["untouched_twice"] == 0.0, "nothing in force, nothing changed"
    text = page(report)
    assert "A quick look" in text
    for name in ("at its off-moments", "best constant bias", "isotropic", "seal"):
        assert name in text


def test_the_plot_is_the_same_again(done, tmp_path):
    pytest.importorskip("matplotlib")
    _, report, _ = done
    first, second = tmp_path / "a.svg", tmp_path / "b.svg"
    draw(report, first)
    draw(report, second)
    assert first.read_bytes() == second.read_bytes()
    assert b"other live features" in first.read_bytes()


def test_started_again_it_plays_nothing_and_says_the_same(done):
    folder, report, said = done
    assert said
    again = []
    repeated = run_experiment(SETUP, folder, folder, lambda *what: again.append(what))
    assert again == []
    assert repeated["hypotheses"] == report["hypotheses"]
    assert sum(row["kind"] == "concluded" for row in entries(folder)) == 1


def test_a_lost_arm_is_played_again_with_the_same_result(done):
    folder, report, _ = done
    arms = sorted((folder / "arms").iterdir())
    arms[0].unlink()
    again = []
    repeated = run_experiment(SETUP, folder, folder, lambda *what: again.append(what))
    assert len(again) <= 1
    assert repeated["hypotheses"][0]["over_untouched"] == pytest.approx(
        report["hypotheses"][0]["over_untouched"]
    )


def test_what_was_promised_cannot_be_changed(done):
    folder, _, _ = done
    changed = msgspec.structs.replace(
        SETUP, targets=(Target(metric="mean cart_velocity", direction=-1),)
    )
    with pytest.raises(UserError, match="cannot be changed"):
        run_experiment(changed, folder, folder, lambda *_: None)


def test_an_audit_that_was_altered_is_refused(done, tmp_path):
    folder, _, _ = done
    copy = tmp_path / "copy"
    (copy / "audit").mkdir(parents=True)
    for file in (folder / "audit").iterdir():
        (copy / "audit" / file.name).write_bytes(file.read_bytes())
    log = copy / "audit" / LOG
    text = log.read_text()
    assert '"direction":1' in text
    log.write_text(text.replace('"direction":1', '"direction":-1'))
    with pytest.raises(CorruptFileError):
        run_experiment(SETUP, folder, copy, lambda *_: None)


def test_an_intervention_that_ended_by_itself_is_no_result(tmp_path, monkeypatch):
    monkeypatch.setattr(Live, "_active", lambda self: [])
    with pytest.raises(UserError, match="ended before its play did"):
        run_experiment(SETUP, tmp_path, tmp_path, lambda *_: None)


def test_a_metric_that_is_none_is_named(tmp_path):
    wrong = msgspec.structs.replace(SETUP, targets=(Target(metric="speed", direction=1),))
    with pytest.raises(UserError, match="there is no metric 'speed'"):
        run_experiment(wrong, tmp_path, tmp_path, lambda *_: None)


def test_controls_are_of_equal_norm_and_never_on():
    loaded = load_transcoder(Path(SETUP.transcoder))
    config = loaded.transcoder.config
    y = np.random.default_rng(0).normal(size=(200, config.d_out)).astype(np.float32)
    made = augmented(loaded, y, 5, 3)
    transcoder, n = made.loaded.transcoder, config.n_features
    assert [*made.isotropic, *made.covariance] == list(range(n, n + 10))
    np.testing.assert_allclose(transcoder.W_dec[n:].norm(dim=1).numpy(), 1.0, rtol=1e-5)
    x = torch.randn(50, config.d_in)
    features = transcoder.encode(x)
    assert not features[:, n:].any()
    assert torch.equal(features[:, :n], loaded.transcoder.encode(x))
    assert transcoder.identity != loaded.transcoder.identity

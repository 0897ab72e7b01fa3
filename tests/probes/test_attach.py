"""A probe from its training to a feature that the encoder serves, on a real policy."""

import json

import msgspec
import numpy as np
import pytest
from scipy.special import expit, logit
from typer.testing import CliRunner

from interlatent_live.cli.main import app
from interlatent_live.encoding.cpu import CpuBackend
from interlatent_live.encoding.prepared import PreparedEncoders
from interlatent_live.environments.disturbance import Disturbance
from interlatent_live.errors import CorruptFileError, MismatchError, UserError
from interlatent_live.pipeline.library import FolderLibrary, LibraryEncode
from interlatent_live.policies.files import load_policy
from interlatent_live.probes.attach import attach_probes
from interlatent_live.probes.linear import Logistic
from interlatent_live.probes.probe import LinearProbe, Side, load_probe
from interlatent_live.probes.targets import parse_target
from interlatent_live.stream import Activations
from interlatent_live.transcoders.acting import acting_policy
from interlatent_live.transcoders.collect import RolloutSettings, collect_rollouts
from interlatent_live.transcoders.dataset import ActivationDataset
from interlatent_live.transcoders.native import JSON_FILE, LoadedTranscoder, load_transcoder

HOOK = "hidden.1"
TARGET = "terminated within 0.4 s"
HARD = Disturbance(start=1.0, push=1.5, push_interval_s=0.4)


def run(*arguments):
    """What the command printed; a user's mistake is raised as it is."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, UserError):
        raise result.exception
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


@pytest.fixture(scope="module")
def worked(tmp_path_factory):
    """Collected, a transcoder and two probes trained, and the probes attached, by commands."""
    folder = tmp_path_factory.mktemp("attach")
    collect_rollouts(
        acting_policy("cartpole"),
        ["hidden.0", HOOK],
        folder / "data",
        RolloutSettings(episodes=120, seed=5, copies=24, disturbance=HARD),
    )
    run(
        "train", folder / "data", "-p", HOOK, "-F", 32, "-k", 4, "--seeds", 1, "--steps", 150,
        "--out", folder / "trained",
    )  # fmt: skip
    (description,) = (folder / "trained").rglob(JSON_FILE)
    for name, target in (("failure", TARGET), ("edge", "cart_position > 0.9 within 0.6 s")):
        run(
            "probe", "train", folder / "data", "--policy", "cartpole", "--target", target, "-p",
            HOOK, "--side", "x", "--out", folder / name,
        )  # fmt: skip
    told = run(
        "probe", "attach", description.parent, folder / "failure", folder / "edge", "--out",
        folder / "served" / "v2",
    )  # fmt: skip
    return folder, load_transcoder(description.parent), told


def test_the_encoder_serves_a_probe_whose_value_is_its_log_odds_above_the_threshold(worked):
    folder, _, _ = worked
    policy = load_policy("cartpole")
    library = FolderLibrary([folder / "served"])
    held = library.find(policy.policy_hash, HOOK)
    assert held.n_features == 34
    assert held.feature_names[32] == f"probe: {TARGET}"
    assert sorted(held.feature_names) == [32, 33]
    rows = ActivationDataset(folder / "data").load(HOOK)
    x, y = rows.x[:3000], rows.y[:3000]
    encode = LibraryEncode(PreparedEncoders(CpuBackend(), limit_bytes=1 << 24))
    codes = encode(held, Activations(x, y, np.arange(len(x), dtype=np.uint16)))
    dense = np.zeros((len(x), held.n_features))
    dense[np.repeat(np.arange(len(x)), np.diff(codes.indptr)), codes.index] = codes.value
    for feature, name in ((32, "failure"), (33, "edge")):
        probe = load_probe(folder / name)
        says = probe.probability(x) > probe.threshold
        on = dense[:, feature] > 0
        assert 0 < on.sum() < len(on)
        # A row whose probability is the threshold up to rounding may fall on either side.
        assert np.mean(on != says) < 1e-3
        served = expit(dense[on, feature] + logit(probe.threshold))
        assert served == pytest.approx(probe.probability(x)[on], abs=1e-4)


def test_nothing_else_changes(worked):
    folder, old, _ = worked
    new = load_transcoder(folder / "served" / "v2")
    x = ActivationDataset(folder / "data").load(HOOK).x[:500]
    before, after = old.transcoder.encode_sparse(x), new.transcoder.encode_sparse(x)
    plain = after.index < 32
    assert np.array_equal(after.index[plain], before.index)
    assert after.value[plain] == pytest.approx(before.value, abs=1e-5)
    assert new.transcoder.decode_sparse(after, x) == pytest.approx(
        old.transcoder.decode_sparse(before, x), abs=1e-5
    )
    assert new.provenance.version == old.provenance.version + 1
    assert new.provenance.parent == old.transcoder.identity != new.transcoder.identity
    assert new.provenance.evaluation == old.provenance.evaluation


def test_its_name_travels_and_is_shown(worked):
    folder, _, told = worked
    assert f"feature 32 is probe: {TARGET}" in told
    description = json.loads((folder / "served" / "v2" / JSON_FILE).read_text(encoding="utf-8"))
    names = [one["name"] for one in description["provenance"]["probes"]]
    assert names == [f"probe: {TARGET}", "probe: cart_position > 0.9 within 0.6 s"]
    CliRunner().invoke(
        app,
        [
            "evaluate", str(folder / "served"), "--dataset", str(folder / "data"), "--policy",
            "cartpole", "--episodes", "0", "--out", str(folder / "report"),
        ],
    )  # fmt: skip
    report = json.loads((folder / "report" / "report.json").read_text(encoding="utf-8"))
    (row,) = [row for row in report["groups"][0]["features"] if row["feature"] == 32]
    assert row["name"] == f"probe: {TARGET}"
    assert row["effect"] == pytest.approx([0.0, 0.0], abs=1e-6)
    assert f"| 32 (probe: {TARGET}) |" in (folder / "report" / "report.md").read_text("utf-8")


def test_a_version_with_probes_is_not_fine_tuned(worked, tmp_path):
    folder, old, _ = worked
    with pytest.raises(UserError, match=f"fine-tune its parent {old.transcoder.identity}"):
        run(
            "finetune", folder / "served" / "v2", "--dataset", folder / "data", "--out",
            tmp_path / "v3",
        )  # fmt: skip


def test_what_does_not_belong_together_is_refused(worked, tmp_path):
    folder, old, _ = worked
    probe = load_probe(folder / "failure")

    def other(**changes):
        values = {name: getattr(probe, name) for name in LinearProbe.__slots__} | changes
        return LinearProbe(**values)

    with pytest.raises(UserError, match="no probe was given"):
        attach_probes(old, [], tmp_path / "out")
    with pytest.raises(MismatchError, match="save the new version elsewhere"):
        attach_probes(old, [probe], old.path)
    with pytest.raises(MismatchError, match="trained on policy sha256:other"):
        attach_probes(old, [other(policy_hash="sha256:other")], tmp_path / "out")
    with pytest.raises(MismatchError, match=r"reads 'hidden\.0'"):
        attach_probes(old, [other(hook_point="hidden.0")], tmp_path / "out")
    with pytest.raises(UserError, match="train the probe with side x"):
        attach_probes(old, [other(side=Side.OUTPUT)], tmp_path / "out")
    with pytest.raises(UserError, match="attached already"):
        attach_probes(load_transcoder(folder / "served" / "v2"), [probe], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_probe_of_a_spans_first_module_reads_the_spans_input(worked, tmp_path):
    _, old, _ = worked
    span = msgspec.structs.replace(old.provenance, hook_point=f"{HOOK}..head")
    probe = LinearProbe(
        parse_target("cart_position > 1"), HOOK, Side.INPUT, span.policy_hash,
        Logistic(np.ones(64), 0.25), 0.5,
    )  # fmt: skip
    done = attach_probes(
        LoadedTranscoder(old.transcoder, span, old.path), [probe], tmp_path / "span"
    )
    again = load_transcoder(tmp_path / "span", hook_point=f"{HOOK}..head")
    assert again.transcoder.identity == done.transcoder.identity
    assert again.provenance.feature_names() == {32: "probe: cart_position > 1"}


def test_a_name_for_a_feature_that_is_not_there_is_refused(worked, tmp_path):
    folder, _, _ = worked
    attached = load_transcoder(folder / "served" / "v2")
    attach_probes(
        attached,
        [
            LinearProbe(
                parse_target("cart_position > 1"), HOOK, Side.INPUT,
                attached.provenance.policy_hash, Logistic(np.ones(64), 0.0), 0.5,
            )
        ],
        tmp_path / "v3",
    )  # fmt: skip
    path = tmp_path / "v3" / JSON_FILE
    description = json.loads(path.read_text(encoding="utf-8"))
    description["provenance"]["probes"][0]["feature"] = 900
    path.write_text(json.dumps(description), encoding="utf-8")
    with pytest.raises(CorruptFileError, match="none of its features"):
        load_transcoder(tmp_path / "v3")

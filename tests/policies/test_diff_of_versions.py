"""From a policy that is learning to what changed: snapshots, transcoders and the commands."""

import json

import pytest
from typer.testing import CliRunner

from interlatent_live.cli.main import app
from interlatent_live.errors import MismatchError, UserError
from interlatent_live.policies.versions import read_versions, snapshot_callback
from interlatent_live.transcoders.native import JSON_FILE

sb3 = pytest.importorskip("stable_baselines3")

HOOK = "hidden.1"


def run(*arguments):
    """What the command printed; a user's mistake is raised as it is."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, UserError):
        raise result.exception
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """Two versions of one PPO policy, each with a small transcoder trained on its own states."""
    folder = tmp_path_factory.mktemp("learned")
    model = sb3.PPO(
        "MlpPolicy", "CartPole-v1", n_steps=256, batch_size=64, n_epochs=4, seed=0, device="cpu",
        policy_kwargs={"net_arch": [16, 16]},
    )  # fmt: skip
    model.learn(2048, callback=snapshot_callback(folder / "versions", every_steps=100_000))
    versions = read_versions(folder / "versions")
    policies = {"old": versions[0], "new": versions[-1]}
    transcoders = {}
    for name, version in policies.items():
        path = folder / "versions" / version.folder
        run(
            "collect", path, "-p", HOOK, "--episodes", 60, "--max-steps", 60, "--epsilon", 0.1,
            "--start", 0.5, "--out", folder / f"{name}-data",
        )  # fmt: skip
        run(
            "train", folder / f"{name}-data", "-F", 24, "-k", 4, "--seeds", 1, "--steps", 300,
            "--batch", 256, "--out", folder / name,
        )  # fmt: skip
        (description,) = (folder / name).rglob(JSON_FILE)
        transcoders[name] = description.parent
    paths = {name: folder / "versions" / version.folder for name, version in policies.items()}
    return folder, policies, paths, transcoders


def test_the_command_says_what_changed_between_two_versions(learned):
    folder, policies, paths, transcoders = learned
    assert policies["old"].policy_hash != policies["new"].policy_hash
    out = folder / "diff.json"
    told = run(
        "diff", paths["old"], paths["new"], "--bank", folder / "bank", "--states", 800,
        "--old-transcoder", transcoders["old"], "--new-transcoder", transcoders["new"],
        "--json", out,
    )  # fmt: skip
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["old_hash"] == policies["old"].policy_hash
    assert found["new_hash"] == policies["new"].policy_hash
    assert found["states"] == 800
    behaviour = found["behaviour"]
    assert behaviour["agreement"] < 1.0  # it learned
    assert behaviour["kl"] > 0
    assert f"{behaviour['agreement']:.1%}" in told
    layers = {layer["hook_point"]: layer for layer in found["layers"]}
    layer = layers[HOOK]
    assert layer["retrained"]
    assert layer["cka"] < 0.999
    # A transcoder knows the version that it was trained on.
    assert layer["fvu_old"] < 0.2
    assert layer["fvu_old"] < layer["fvu_new"]
    matched = layer["kept"] + layer["changed"]
    assert matched
    assert len({pair["old"] for pair in matched}) == len(matched)
    assert len({pair["new"] for pair in matched}) == len(matched)
    assert f"{len(layer['kept'])} features kept, {len(layer['changed'])} changed" in told
    assert layers["hidden.0"]["fvu_old"] is None


def test_without_a_new_transcoder_the_old_one_reads_both(learned):
    folder, _, paths, transcoders = learned
    out = folder / "one.json"
    run(
        "diff", paths["old"], paths["new"], "--bank", folder / "bank-one", "--states", 400,
        "--old-transcoder", transcoders["old"], "--json", out,
    )  # fmt: skip
    layers = {x["hook_point"]: x for x in json.loads(out.read_text(encoding="utf-8"))["layers"]}
    assert not layers[HOOK]["retrained"]
    assert all(p["old"] == p["new"] for p in layers[HOOK]["kept"] + layers[HOOK]["changed"])


def test_a_version_does_not_differ_from_itself(learned):
    folder, _, paths, transcoders = learned
    out = folder / "same.json"
    run(
        "diff", paths["new"], paths["new"], "--bank", folder / "bank-same", "--states", 400,
        "--old-transcoder", transcoders["new"], "--new-transcoder", transcoders["new"],
        "--json", out,
    )  # fmt: skip
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["behaviour"]["agreement"] == 1.0
    (layer,) = [layer for layer in found["layers"] if layer["hook_point"] == HOOK]
    assert layer["cka"] == pytest.approx(1.0)
    assert layer["kept"]
    assert (layer["changed"], layer["gone"], layer["new"]) == ([], [], [])


def test_a_transcoder_of_the_other_version_is_refused(learned):
    folder, policies, paths, transcoders = learned
    with pytest.raises(MismatchError, match=policies["new"].policy_hash):
        run(
            "diff", paths["old"], paths["new"], "--bank", folder / "bank-refused", "--states", 50,
            "--old-transcoder", transcoders["new"],
        )  # fmt: skip

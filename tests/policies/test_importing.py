import hashlib
import json

import numpy as np
import pytest
from typer.testing import CliRunner

from interlatent_live.cli.policies import app
from interlatent_live.errors import CorruptFileError, MismatchError, UserError
from interlatent_live.policies.files import load_policy
from interlatent_live.policies.importing import import_plain


@pytest.fixture
def source(tmp_path):
    """A folder of plain arrays as it is found in the world: manifest, licence, one actor."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "weights" / "pendulum"
    folder.mkdir(parents=True)
    path = folder / "small.actor.npz"
    np.savez(
        path,
        W0=rng.normal(size=(5, 3)).astype(np.float32),
        b0=rng.normal(size=5).astype(np.float32),
        W1=rng.normal(size=(1, 5)).astype(np.float32),
        b1=rng.normal(size=1).astype(np.float32),
        obs_mean=np.array([0.1, 0.2, 0.3]),
        obs_std=np.array([1.0, 2.0, 3.0]),
    )
    licences = tmp_path / "weights" / "LICENSES"
    licences.mkdir()
    (licences / "someone_project.MIT.txt").write_text("MIT terms", encoding="utf-8")
    write_manifest(path)
    return path


def write_manifest(path, **changes):
    entry = {
        "env_dir": "pendulum",
        "actor_file": path.name,
        "actor_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "env_id": "Pendulum-v1",
        "algo": "PPO",
        "obs_dim": 3,
        "hidden": [5],
        "out_dim": 1,
        "activation": "tanh",
        "output": "tanh-scale",
        "obs_adapter": "none",
        "obs_clip": None,
        "source_repo": "someone/project @abc",
        "source_path": "a/b.zip",
        "licence": "MIT",
        "measured": "-150 ± 10",
        "returns": [-150.0],
        "note": "",
        **changes,
    }
    text = json.dumps([entry])
    (path.parent.parent / "manifest.json").write_text(text, encoding="utf-8")


def test_plain_arrays_become_a_policy_that_computes_the_same(source, tmp_path):
    loaded = import_plain(source, tmp_path / "out", name="pendulum")
    again = load_policy(tmp_path / "out")
    assert again.policy_hash == loaded.policy_hash
    arrays = np.load(source)
    obs = np.array([[0.5, -0.5, 2.0]])
    x = (obs - arrays["obs_mean"]) / arrays["obs_std"]
    h = np.tanh(x @ arrays["W0"].T + arrays["b0"])
    y = h @ arrays["W1"].T + arrays["b1"]
    expected = -2.0 + (np.tanh(y) + 1) / 2 * 4.0  # Pendulum's torque lies in ±2
    assert again.module.act(obs) == pytest.approx(expected, abs=1e-5)
    assert again.provenance.source == "someone/project @abc: a/b.zip"
    assert (tmp_path / "out" / "LICENSE").read_text(encoding="utf-8") == "MIT terms"


def test_another_file_than_the_manifest_names_is_refused(source, tmp_path):
    write_manifest(source, actor_sha256="0" * 64)
    with pytest.raises(MismatchError, match="the manifest says 000000"):
        import_plain(source, tmp_path / "out", name="x")
    assert not (tmp_path / "out").exists()


def test_pickled_arrays_are_never_loaded(source, tmp_path):
    np.savez(source, W0=np.array([{"a": 1}], dtype=object))
    write_manifest(source)
    with pytest.raises(CorruptFileError, match="holds no plain arrays"):
        import_plain(source, tmp_path / "out", name="x")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"obs_adapter": "fetch_concat(a)"}, "is not one of none, flatten"),
        ({"env_id": "Nowhere-v9"}, "cannot make 'Nowhere-v9'"),
        ({"env_id": "CartPole-v1"}, "discrete actions"),
        ({"licence": "GPL"}, "nothing is imported without it"),
        ({"env_dir": "other"}, "says nothing about"),
    ],
)
def test_what_cannot_be_honoured_is_refused(source, tmp_path, changes, match):
    write_manifest(source, **changes)
    with pytest.raises(UserError, match=match):
        import_plain(source, tmp_path / "out", name="x")


def test_shapes_that_do_not_follow_the_manifest_are_refused(source, tmp_path):
    write_manifest(source, hidden=[6])
    with pytest.raises(CorruptFileError, match="where"):
        import_plain(source, tmp_path / "out", name="x")


def test_the_commands(source, tmp_path):
    runner = CliRunner()
    done = runner.invoke(app, ["import", str(source), "--out", str(tmp_path / "mine")])
    assert done.exit_code == 0, done.output
    assert "mine: Pendulum-v1, sha256:" in done.output
    measured = runner.invoke(app, ["evaluate", str(tmp_path / "mine"), "--episodes", "2"])
    assert measured.exit_code == 0, measured.output
    assert "over 2 episodes, seeds 2000+" in measured.output
    listed = runner.invoke(app, ["list"])
    assert "cartpole" in listed.output


def test_a_zip_must_say_its_environment_and_licence(tmp_path):
    result = CliRunner().invoke(app, ["import", "a.zip", "--out", str(tmp_path)])
    assert isinstance(result.exception, UserError)
    assert "--environment" in str(result.exception)

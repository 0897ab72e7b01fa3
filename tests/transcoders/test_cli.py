"""The commands as a user runs them, on the policy that travels with the package."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from interlatent_live.cli.main import app
from interlatent_live.errors import UserError

HOOK = "hidden.0..hidden.1"


def run(*arguments, code=0):
    """What the command printed; a user's mistake is raised as it is."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, UserError):
        raise result.exception
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


@pytest.fixture(scope="module")
def worked(tmp_path_factory):
    """A folder in which collect and train were run."""
    folder = tmp_path_factory.mktemp("cli")
    told = run(
        "collect", "cartpole", "-p", HOOK, "--episodes", 40, "--copies", 20, "--max-steps", 80,
        "--epsilon", 0.1, "--out", folder / "data",
    )  # fmt: skip
    assert "40 episodes" in told
    told = run(
        "train", folder / "data", "-F", 64, "-k", 6, "--seeds", 2, "--steps", 800, "--batch", 256,
        "--out", folder / "out",
    )  # fmt: skip
    assert told.count("FVU") >= 2
    return folder


def transcoder(folder, seed=0):
    return folder / "out" / HOOK / f"batchtopk-F64-k6-seed{seed}"


def test_evaluate_writes_a_report_and_exits_by_its_gate(worked):
    folder = worked
    arguments = (
        "evaluate", folder / "out", "--dataset", folder / "data", "--policy", "cartpole",
        "--episodes", 4, "--max-steps", 60, "--out", folder / "report",
    )  # fmt: skip
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    report = json.loads((folder / "report" / "report.json").read_text())
    passed = all(group["gate"]["passed"] for group in report["groups"])
    assert result.exit_code == (0 if passed else 1)
    assert report["groups"][0]["gate"]["verdict"] in result.output


def test_export_then_import(worked):
    folder = worked
    run("export", transcoder(folder), "--format", "saelens", "--out", folder / "sae")
    told = run(
        "import", folder / "sae", "--format", "saelens", "--policy", "cartpole", "--dataset",
        folder / "data", "--out", folder / "back",
    )  # fmt: skip
    assert "FVU" in told
    with pytest.raises(UserError, match="TopK only"):
        run("export", transcoder(folder), "--format", "sparsify", "--out", folder / "no")
    with pytest.raises(UserError, match="one transcoder per folder"):
        run(
            "export", transcoder(folder), transcoder(folder, 1), "--format", "saelens", "--out",
            folder / "no",
        )  # fmt: skip


def test_finetune(worked):
    folder = worked
    run(
        "collect", "cartpole", "-p", HOOK, "--episodes", 40, "--max-steps", 80, "--seed", 900,
        "--start", 0.6, "--out", folder / "drifted",
    )  # fmt: skip
    told = run(
        "finetune", transcoder(folder), "--dataset", folder / "drifted", "--steps", 50, "--out",
        folder / "v2",
    )  # fmt: skip
    assert "version 2" in told
    assert "keep their ids" in told


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("collect", "nobody"), "nobody"),
        (("collect",), "--recording"),
        (("collect", "cartpole", "-p", "hidden.7"), r"hidden\.7"),
        (("train", "no-such-data"), "no-such-data"),
        (("train", "DATA", "--architecture", "gated"), "gated"),
        (("train", "DATA", "-k", "900"), "k is 900"),
        (("train", "DATA", "--normalise", "max"), "max"),
        (("train", "DATA", "--architecture", "matryoshka", "--widths", "2;4"), "2,4,8"),
        (("train", "DATA", "--head-weight", "0.1"), "--policy"),
        (("train", "DATA", "--policy", "lunarlander-ppo", "--head-weight", "0.1"), "lunarlander"),
    ],
)
def test_mistakes_are_one_sentence(worked, tmp_path, arguments, said):
    filled = [str(worked / "data") if word == "DATA" else word for word in arguments]
    with pytest.raises(UserError, match=said):
        run(*filled, "--out", tmp_path / "out")


def test_help_imports_no_torch():
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from interlatent_live.cli.main import app\n"
        "for name in ('collect', 'train', 'evaluate', 'export', 'import', 'finetune'):\n"
        "    assert CliRunner().invoke(app, [name, '--help']).exit_code == 0, name\n"
        "assert 'torch' not in sys.modules\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)

"""What a user installs: built, installed outside the checkout, and looked at from there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import textwrap
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
GENERIC = ("services", "prompts", "tests", "deploy", "examples", "docs", "build")
NEVER = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "node_modules")
OUTPUT = shutil.ignore_patterns("build", "dist", "runs", "out")
"""In the checkout's own folder only: the page's dist is part of the package."""


def run(*command: str | Path, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """As a user would, from elsewhere: nothing of this process's paths or settings is handed on."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "INTERLATENT_", "PYTEST_", "VIRTUAL_ENV"))
    }
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    if check and done.returncode != 0:
        raise AssertionError(f"{command} exited with {done.returncode}:\n{done.stderr[-4000:]}")
    return done


def left_out(folder: str, names: list[str]) -> set[str]:
    """What a copy of the checkout does without."""
    return NEVER(folder, names) | (OUTPUT(folder, names) if Path(folder) == ROOT else set())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source distribution, which is built from a copy of the tree."""
    folder = tmp_path_factory.mktemp("build")
    source = folder / "source"
    shutil.copytree(ROOT, source, symlinks=True, ignore=left_out)
    # Without --wheel or --sdist, build makes the wheel from the sdist. Without isolation it needs
    # no network: the build's one requirement is in the dev extra.
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", source,
        cwd=folder)  # fmt: skip
    (built,) = (folder / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment outside the checkout that has the wheel and its dependencies.

    The dependencies are this environment's own, through a .pth file: an editable install's hook is
    not run from there, so the package itself can come only from the wheel.
    """
    folder = tmp_path_factory.mktemp("elsewhere") / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = (folder / "lib").glob("python*/site-packages")
    (site / "borrowed.pth").write_text(
        "".join(f"{path}\n" for path in sys.path if path.endswith("site-packages")),
        encoding="utf-8",
    )
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index",
        "--force-reinstall", "--ignore-installed", wheel, cwd=folder)  # fmt: skip
    return python


def names_in(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_the_wheel_has_one_top_level_name(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in names_in(wheel)}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"interlatent_live"}


def test_the_wheel_carries_every_module_prompt_and_data_file(wheel: Path) -> None:
    inside = set(names_in(wheel))
    tree = wheel.parents[1] / "source"  # what it was built from: the checkout may move on
    folders = {
        "interlatent_live/services": tree / "services",
        "interlatent_live/prompts": tree / "prompts",
        "interlatent_live": tree / "interlatent_live",
    }
    expected = {
        f"{name}/{path.relative_to(folder)}"
        for name, folder in folders.items()
        for path in folder.rglob("*")
        if path.is_file()
    }
    # Of the page, what is built travels, and not what it is built from.
    left_out = r"/(\.|__pycache__)|\.egg-info/|^interlatent_live/console/page/(?!dist/)"
    wanted = {name for name in expected if not re.search(left_out, name)}
    assert len(wanted) > 50
    assert wanted - inside == set()
    assert any(name.startswith("interlatent_live/data/policies/cartpole/") for name in inside)
    assert any("LICENSE" in name for name in inside if name.startswith("interlatent_live/data/"))


def test_the_wheel_carries_nothing_else(wheel: Path) -> None:
    endings = (".pyc", ".pkl", ".pt", ".pickle", "~", ".svelte", ".ts")
    strange = [
        name
        for name in names_in(wheel)
        if "__pycache__" in name or "node_modules" in name or name.endswith(endings)
    ]
    assert strange == []


def test_the_source_distribution_has_what_the_wheel_is_made_of(wheel: Path) -> None:
    (sdist,) = wheel.parent.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        members = {name.partition("/")[2] for name in archive.getnames()}
        links = [member.name for member in archive.getmembers() if member.issym()]
    assert {"pyproject.toml", "README.md", "LICENSE"} <= members
    assert "interlatent_live/services/runtime.py" in members
    assert links == []  # where a link can't be made, unpacking would fail


def test_the_same_names_are_imported_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    code = """
        import importlib.metadata, json
        import interlatent_live, interlatent_live.services, interlatent_live.prompts
        print(json.dumps([
            interlatent_live.__version__, importlib.metadata.version("interlatent-live"),
            interlatent_live.__file__, interlatent_live.services.__name__,
            interlatent_live.prompts.__name__,
        ]))
    """
    done = run(installed, "-c", textwrap.dedent(code), cwd=tmp_path)
    version, distribution, file, services, prompts = json.loads(done.stdout)
    assert version == distribution
    assert Path(file).is_relative_to(installed.parents[1])
    assert (services, prompts) == ("interlatent_live.services", "interlatent_live.prompts")


@pytest.mark.parametrize("name", GENERIC)
def test_no_generic_name_can_be_imported(installed: Path, tmp_path: Path, name: str) -> None:
    code = (
        f"import importlib.util as u, json; spec = u.find_spec({name!r});"
        "found = [spec.origin, *(spec.submodule_search_locations or [])] if spec else [];"
        "print(json.dumps([place for place in found if place]))"
    )
    for python in (installed, Path(sys.executable)):  # from the wheel, and editable
        for place in json.loads(run(python, "-c", code, cwd=tmp_path).stdout):
            # Another package's own (`build`) is none of ours, wherever its environment lies.
            assert not Path(place).is_relative_to(ROOT / name)
            assert not Path(place).is_relative_to(installed.parents[1])


def test_the_command_works_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    command = installed.parent / "interlatent-live"
    done = run(command, "--help", cwd=tmp_path)
    assert "doctor" in done.stdout
    by_module = run(installed, "-m", "interlatent_live", "config", "show", "--json", cwd=tmp_path)
    assert json.loads(by_module.stdout)["encoder.threads"] == {"value": 1, "from": "default"}
    refused = run(command, "bench", "nothing-of-the-kind", cwd=tmp_path, check=False)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: there is no benchmark")
    assert "Traceback" not in refused.stderr


def test_importing_the_package_is_light(installed: Path, tmp_path: Path) -> None:
    code = (
        "import sys, interlatent_live, interlatent_live.cli.main;"
        "heavy = {'torch', 'zmq', 'openai', 'anthropic', 'sklearn', 'scipy', 'gymnasium'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert run(installed, "-c", code, cwd=tmp_path).stdout.strip() == "[]"


def test_types_are_seen_from_outside(installed: Path, tmp_path: Path) -> None:
    module = tmp_path / "mine.py"
    module.write_text(
        "import interlatent_live.services\n"
        "from interlatent_live.stream import FeatureAddress\n"
        "reveal_type(FeatureAddress.parse('a/1@b'))\n"
        "FeatureAddress(1, 2, 3)\n",
        encoding="utf-8",
    )
    # What the package itself imports is not the question, and torch's types cost half a minute.
    settings = tmp_path / "mypy.ini"
    settings.write_text(
        "[mypy]\nstrict = true\nfollow_imports = silent\n"
        "[mypy-torch.*,numpy.*,gymnasium.*,zmq.*,scipy.*]\nfollow_imports = skip\n",
        encoding="utf-8",
    )
    done = run(sys.executable, "-m", "mypy", "--config-file", settings, "--python-executable",
               installed, "--cache-dir", tmp_path / "cache", module,
               cwd=tmp_path, check=False)  # fmt: skip
    assert 'Revealed type is "interlatent_live.stream.FeatureAddress"' in done.stdout
    assert "import-untyped" not in done.stdout
    assert "[arg-type]" in done.stdout
    assert "py.typed" not in done.stdout


@pytest.mark.slow
def test_the_demo_runs_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    run(installed.parent / "interlatent-live", "demo", "--headless", "--steps", "2000",
        "--json", out, cwd=tmp_path)  # fmt: skip
    steps = json.loads(out.read_text(encoding="utf-8"))["steps"]
    assert steps["sent"] == steps["encoded"] > 0
    assert steps["gaps_undeclared"] == 0

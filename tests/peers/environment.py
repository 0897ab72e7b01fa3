"""The other packages live in an environment of their own and are called as subprocesses.

They pin their own transformers, datasets and torch, which must never decide ours. ``make peers``
makes it; so does the first test that needs it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

PACKAGES = ("sae-lens==6.54.12", "eai-sparsify==1.3.3", "circuit-tracer==0.5.0")
CONSTRAINTS = (
    "torch==2.13.0",
    # What the three agree on: pip finds it too, after many minutes.
    "huggingface-hub==0.36.2",
    "transformer-lens==3.2.1",
    "transformers==4.57.3",
)
VARIABLE = "INTERLATENT_PEERS_VENV"


@cache
def peers_python() -> Path:
    """Interpreter of the peers' environment, made on first use (some minutes)."""
    default = Path.home() / ".cache" / "interlatent-live" / "peers"
    folder = Path(os.environ.get(VARIABLE, default))
    python = folder / "bin" / "python"
    if not _has_all(python):
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        constraints = folder / "constraints.txt"
        constraints.write_text("\n".join(CONSTRAINTS) + "\n")
        pip = [str(python), "-m", "pip", "install", "-q", "-c", str(constraints)]
        subprocess.run([*pip, *PACKAGES], check=True)
    return python


def _has_all(python: Path) -> bool:
    """Whether the environment is there, and not only a part of it."""
    names = ("sae_lens", "sparsify", "circuit_tracer")
    code = f"from importlib.util import find_spec as f; exit(None in map(f, {names}))"
    return python.exists() and subprocess.run([python, "-c", code], check=False).returncode == 0


if __name__ == "__main__":
    sys.stdout.write(f"{peers_python().parent.parent}\n")

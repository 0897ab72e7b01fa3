"""The other packages live in an environment of their own and are called as subprocesses.

They pin their own transformers, datasets and torch, which must never decide ours.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PACKAGES = ("sae-lens==6.54.12", "eai-sparsify==1.3.3", "circuit-tracer==0.5.0")
CONSTRAINTS = ("torch==2.13.0",)
VARIABLE = "INTERLATENT_PEERS_VENV"


def peers_python() -> Path:
    """Interpreter of the peers' environment, made on first use (some minutes)."""
    default = Path.home() / ".cache" / "interlatent-live" / "peers"
    folder = Path(os.environ.get(VARIABLE, default))
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        constraints = folder / "constraints.txt"
        constraints.write_text("\n".join(CONSTRAINTS) + "\n")
        pip = [str(python), "-m", "pip", "install", "-q", "-c", str(constraints)]
        subprocess.run([*pip, *CONSTRAINTS], check=True)
        for package in PACKAGES:
            # One by one: circuit-tracer may be missing from a mirror, the others must not suffer.
            subprocess.run([*pip, package], check=False)
    return python


def has_package(name: str) -> bool:
    """Whether the peers' environment can import a package."""
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({name!r}) is None)"
    return subprocess.run([str(peers_python()), "-c", code], check=False).returncode == 0

"""Every test of this folder needs a CUDA device, and says so when there is none."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest


@pytest.fixture(scope="session", autouse=True)
def cuda() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")


@pytest.fixture(scope="session")
def cuda_backend(cuda: None) -> Any:
    """The class, imported only where Triton can compile."""
    pytest.importorskip("triton")
    return import_module("interlatent_live.encoding.cuda").CudaBackend

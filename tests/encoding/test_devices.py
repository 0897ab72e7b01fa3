from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from interlatent_live.encoding.devices import open_device
from interlatent_live.errors import UserError


def test_devices_are_found_or_refused_in_a_sentence():
    assert open_device("cpu").name == "cpu"
    with pytest.raises(UserError, match="unknown device 'tpu'"):
        open_device("tpu")
    if not torch.cuda.is_available():
        assert open_device("auto").name == "cpu"
        for device in ("cuda", "cuda:1"):
            with pytest.raises(UserError, match=f"device {device} was asked for.*auto or cpu"):
                open_device(device)


def test_the_cpu_needs_no_torch():
    code = (
        "import sys\n"
        "from interlatent_live.encoding import devices, prepared, micro_batching\n"
        "devices.open_device('cpu')\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""Settings of every test: Hypothesis neither hurries on a busy machine nor draws anew in CI.

Services started by a test keep their state in a folder of this test run, never in the user's. Where
files of tests run beside each other, one computes with one thread: two that want every core each
only wait for one another.
"""

import atexit
import os
import shutil
import tempfile

from hypothesis import HealthCheck, settings

settings.register_profile("here", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("here"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

_STATE = tempfile.mkdtemp(prefix="interlatent-state-")
os.environ["XDG_STATE_HOME"] = _STATE
atexit.register(shutil.rmtree, _STATE, ignore_errors=True)

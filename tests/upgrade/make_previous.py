"""Writes what a running system keeps, for a later version to open; run it under a release's code.

``python -m tests.upgrade.make_previous`` replaces ``previous/``: a recording, the store, a
snapshot of the statistics, the transcoder they were made with, and what was in them.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import tempfile
import time
from pathlib import Path

from interlatent_live import __version__
from tests.support.recorder import Recorder
from tests.support.system import HOOK, System, Walker, save, transcoder

OUT = Path(__file__).parent / "previous"
STEPS = 9000
KEPT_WITHIN_S = 5.0


def main() -> None:
    """Run a system for some seconds and keep what it wrote."""
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    save(OUT / "transcoders", transcoder())
    with tempfile.TemporaryDirectory() as state, Recorder(OUT / "recording.mcap") as recorder:
        flags = {
            "encoder.transcoders": [str(OUT / "transcoders")],
            "encoder.consumers": [recorder.endpoint],
            "console.state": state,
            "correlator.snapshots": str(OUT / "snapshots"),
            "correlator.snapshot_every_s": 1.0,
            "correlator.snapshots_kept": 1,
        }
        with System(**flags) as system:
            with system.tap() as tap:
                Walker(tap).walk(STEPS, hz=500)
                run_id = tap.run_id
            system.wait(lambda seen: seen.settled(run_id))
            (profiles,) = [one for (run, _), one in system.state.profiles.items() if run == run_id]
            time.sleep(KEPT_WITHIN_S)
            claims = system.state.claims[run_id, HOOK].claims
        with (
            sqlite3.connect(Path(state) / "store.sqlite3") as kept,
            sqlite3.connect(OUT / "store.sqlite3") as copy,
        ):
            kept.backup(copy)
    facts = {
        "version": __version__,
        "run_id": run_id,
        "hook_point": HOOK,
        "rows": profiles.steps,
        "claims": len(claims),
        "density": {str(one.index): one.density for one in profiles.features[:8]},
    }
    (OUT / "facts.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Writes the figures that the README shows: times of a CI run, and its demo without the long lists.

``readme_figures.py DEMO.json FOLDER NAME=SECONDS …``; run by ``.ci/run`` when it is told a folder.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from interlatent_live.bench.report import machine_facts, version_facts

STEPS = {
    "install, as the README says": "install_s",
    "the README's test command": "tests_s",
    "demo without a screen": "demo_s",
}
LONG = ("features", "narration")


def main() -> None:
    """Write ``demo.json`` and ``readme.json`` into the folder."""
    demo_file, folder, *times = sys.argv[1:]
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    demo = json.loads(Path(demo_file).read_text(encoding="utf-8"))
    kept = {name: value for name, value in demo.items() if name not in LONG}
    seconds = dict(one.rsplit("=", 1) for one in times)
    readme = {key: float(seconds[name]) for name, key in STEPS.items() if name in seconds}
    facts = {"machine": machine_facts(), "versions": version_facts()}
    for name, values in (("demo", kept), ("readme", readme)):
        text = json.dumps({**values, **facts}, indent=1, ensure_ascii=False)
        (out / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Results of a long benchmark's parts on disk, so that what was cut off goes on where it was.

The folder lies among temporary files and is named by everything that a part's result depends on:
another seed, size or version is another folder. Ctrl-C loses the part under way and no more.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interlatent_live.bench.report import BenchRow, version_facts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Parts:
    """Finished parts of one benchmark; ``about`` is what their results depend on."""

    def __init__(self, name: str, about: object, *, root: Path | None = None) -> None:
        text = json.dumps([about, version_facts()], sort_keys=True, default=str)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        base = root or Path(tempfile.gettempdir())
        self.folder = base / f"interlatent-bench-{name}-{digest}"

    def value(self, part: str, make: Callable[[], Any]) -> Any:
        """A part's result, made now or before; it must survive JSON."""
        file = self._file(part)
        if file.exists():
            return json.loads(file.read_text(encoding="utf-8"))
        made = make()
        self.folder.mkdir(parents=True, exist_ok=True)
        fresh = file.with_suffix(".new")
        fresh.write_text(json.dumps(made), encoding="utf-8")
        fresh.replace(file)
        return json.loads(file.read_text(encoding="utf-8"))

    def rows(self, part: str, make: Callable[[], Sequence[BenchRow]]) -> list[BenchRow]:
        """A part's rows, made now or before."""
        found = self.value(part, lambda: [asdict(row) for row in make()])
        return [BenchRow(**row) for row in found]

    def forget(self) -> None:
        """Drop everything: the benchmark has ended."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, part: str) -> Path:
        return self.folder / f"{hashlib.sha256(part.encode()).hexdigest()[:16]}.json"

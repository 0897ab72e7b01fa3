"""A system in shards as real processes on free ports, its agents, and its single-process answer."""

import threading
import time
from contextlib import ExitStack, contextmanager

import numpy as np

from interlatent_live.engine.sharded import System
from interlatent_live.errors import UserError
from interlatent_live.feed.client import FeedClient
from interlatent_live.queries.client import StatisticsClient
from tests.support.correlator_service import CorrelatorProcess
from tests.support.system import System as PlainSystem
from tests.support.system import Walker, save, transcoder

DERIVED = {"n_eff", "lo", "hi", "auroc_lo", "auroc_hi"}
"""Columns that definitions do not hold to 1e-9, as they do counts (exactly), r and means."""


class Sharded(PlainSystem):
    """As :class:`tests.support.system.System`, in shards, with a recorder."""

    def __init__(self, folder, shards, cluster=None, **flags):
        save(folder / "transcoders", transcoder())
        self.recordings = folder / "recordings"
        super().__init__(
            **{
                "encoder.transcoders": [str(folder / "transcoders")],
                "recorder.folder": str(self.recordings),
                "recorder.chunk_seconds": 0.5,
                "correlator.replay": [str(self.recordings)],
                "correlator.snapshots": str(folder / "snapshots"),
                "correlator.snapshot_every_s": 5.0,
                **flags,
            }
        )
        self.up = System(self.settings, shards, cluster)

    def __enter__(self):
        self._stack.enter_context(self.up)
        self.engine = self.up.head
        self.up.start()
        self._watcher.start()
        return self

    def statistics(self, **options) -> StatisticsClient:
        return StatisticsClient(self.settings.endpoints.correlator_queries, **options)

    def rows(self, run_id) -> int:
        """Rows of a run in the statistics; 0 while nobody has it."""
        with self.statistics(timeout_s=5.0) as client:
            try:
                return client.hook_points(run=run_id).items[0].source.rows
            except (UserError, IndexError):
                return 0


class Herd:
    """Walkers that walk at once, each in a thread with a tap of its own."""

    def __init__(self, system, runs, hz=200.0, folder=None):
        self.walkers = []
        self._stop = threading.Event()
        self._stack = ExitStack()
        for number, run in enumerate(runs):
            options = {}
            if folder is not None:
                options = {"on_full": "spool", "spool": folder / f"spool-{run}"}
            tap = self._stack.enter_context(system.tap(run_id=run, **options))
            self.walkers.append(Walker(tap, seed=number))
        self._threads = [
            threading.Thread(target=self._walk, args=(one, hz), daemon=True) for one in self.walkers
        ]

    def _walk(self, walker, hz):
        while not self._stop.is_set():
            walker.walk(50, hz)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def halt(self):
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def __exit__(self, *error):
        self.halt()
        self._stack.close()


@contextmanager
def single_process(system):
    """One correlator that replays what a system recorded; a client of it."""
    flags = {"correlator.replay": [str(system.recordings)], "limits.statistics_bytes": 1 << 30}
    with (
        CorrelatorProcess(**flags) as process,
        StatisticsClient(process.settings.endpoints.correlator_queries, timeout_s=30.0) as client,
    ):
        yield client


def assert_equal_answers(system, runs, within_s=60.0):
    """The shards' answers are those of one process, as definitions have it: counts exactly."""
    with single_process(system) as alone, system.statistics(timeout_s=30.0) as shards:
        for run in runs:
            wanted = settled(alone, run, within_s)
            found = settled(shards, run, within_s)
            assert found.keys() == wanted.keys()
            for name, column in wanted.items():
                if isinstance(column, np.ndarray) and column.dtype.kind == "f":
                    # n_eff divides by small differences: sums of another order show in it first.
                    near = 1e-7 if name in DERIVED else 1e-9
                    np.testing.assert_allclose(
                        found[name], column, rtol=near, atol=near, err_msg=f"{run} {name}"
                    )
                else:
                    assert list(found[name]) == list(column), (run, name)


def settled(client, run, within_s):
    """The columns of a run once they no longer change."""
    deadline = time.monotonic() + within_s
    before = None
    while time.monotonic() < deadline:
        try:
            rows = client.hook_points(run=run).items[0].source.rows
        except (UserError, IndexError):
            rows = 0
        if rows and rows == before:
            return client.columns(run=run)
        before = rows
        time.sleep(1.0)
    raise AssertionError(f"the statistics of {run} did not settle: {before} rows")


__all__ = ["FeedClient", "Herd", "Sharded", "assert_equal_answers", "single_process"]

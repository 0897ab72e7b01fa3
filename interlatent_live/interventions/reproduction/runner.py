"""All policies of the experiment, a few processes at a time, each policy resumable.

A policy's folder holds its plan, with all that the plan speaks of, from the moment its arms are
fixed, and ``result.json`` once its held-out episodes are played. A run that was interrupted goes on
from there.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import queue
import signal
import threading
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from interlatent_live.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.context import SpawnProcess
    from multiprocessing.queues import Queue
    from pathlib import Path

    from interlatent_live.interventions.reproduction.settings import Settings

RESULT = "result.json"


@dataclass(frozen=True, slots=True)
class Progress:
    """A stage of a policy is done."""

    policy: int
    stage: str


def finished(settings: Settings, work: Path) -> int:
    """How many policies of these settings an earlier run finished."""
    return sum(path.exists() for path in (f / RESULT for f in _folders(settings, work)))


def run_policies(
    settings: Settings, work: Path, workers: int, on_progress: Callable[[Progress], None]
) -> list[dict[str, Any]]:
    """Results of all policies, in order; finished ones are read, the others are run.

    Raises:
        UserError: when a policy cannot be had, or ``work`` belongs to other settings.
        RuntimeError: when a worker process failed otherwise; the message holds its traceback.
    """
    folders = _folders(settings, work)
    waiting = [i for i, folder in enumerate(folders) if not (folder / RESULT).exists()]
    context = multiprocessing.get_context("spawn")
    reports: Queue[tuple[int, str, str]] = context.Queue()
    running: dict[int, SpawnProcess] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                index = waiting.pop(0)
                process = context.Process(
                    target=_worker, args=(settings, index, folders[index], reports), daemon=True
                )
                process.start()
                running[index] = process
            try:
                index, kind, text = reports.get(timeout=0.5)
            except queue.Empty:
                _raise_if_dead(running)
                continue
            if kind == "stage":
                on_progress(Progress(index, text))
            elif kind == "done":
                running.pop(index).join()
            elif kind == "mistake":
                raise UserError(text)
            else:
                raise RuntimeError(f"policy {index} failed:\n{text}")
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.join()
    return [json.loads((folder / RESULT).read_text(encoding="utf-8")) for folder in folders]


def run_policy(
    settings: Settings, index: int, folder: Path, report: Callable[[str], None]
) -> dict[str, Any]:
    """Prepare a policy and write its plan, or go on from one; play the test, write its result.

    Raises:
        CorruptFileError: when what an interrupted run left is damaged.
        MismatchError: when the folder's plan was made with other settings.
    """
    # Imported here: the parent process shows a progress bar and needs no torch.
    from interlatent_live.interventions.reproduction import (  # noqa: PLC0415 - see above
        experiment,
        prepared_files,
    )

    began, cpu = time.monotonic(), time.process_time()
    prepared = prepared_files.load_prepared(folder, settings)
    if prepared is None:
        prepared = experiment.prepare(settings, index, report)
        prepared_files.save_prepared(folder, prepared, settings)
    result = experiment.run_test(prepared, settings)
    result["seconds"] = round(time.monotonic() - began, 1)
    result["cpu_seconds"] = round(time.process_time() - cpu, 1)
    text = json.dumps(result, indent=1, ensure_ascii=False)
    prepared_files.write_whole(folder / RESULT, text)
    report("tested")
    return result


def _folders(settings: Settings, work: Path) -> list[Path]:
    return [work / settings.digest() / f"policy-{i}" for i in range(settings.policies)]


def _worker(
    settings: Settings, index: int, folder: Path, reports: Queue[tuple[int, str, str]]
) -> None:
    # Ctrl-C reaches the whole process group; the parent alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        run_policy(settings, index, folder, lambda stage: reports.put((index, "stage", stage)))
    except UserError as error:
        reports.put((index, "mistake", str(error)))
    except Exception:  # noqa: BLE001 - whatever it was, the parent must hear of it
        reports.put((index, "error", traceback.format_exc()))
    else:
        reports.put((index, "done", ""))


def _die_with_parent() -> None:
    """A parent that was killed cannot end its workers; they notice and end themselves."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _raise_if_dead(running: dict[int, SpawnProcess]) -> None:
    for index, process in running.items():
        if not process.is_alive():
            time.sleep(0.2)  # its last words may still be in the pipe
            if process.exitcode:
                raise RuntimeError(f"policy {index}'s process died with {process.exitcode}")

"""Optional loggers of training progress; neither package is needed unless it is asked for."""

from __future__ import annotations

import importlib
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from interlatent_live.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from interlatent_live.transcoders.training.trainer import TrainProgress

    Log = Callable[[TrainProgress], None]


@contextmanager
def progress_loggers(
    *, tensorboard: Path | None = None, wandb_project: str = ""
) -> Iterator[Callable[[TrainProgress], None]]:
    """One function that tells every logger asked for; they are closed at the end.

    Raises:
        UserError: when the package of a logger is not installed.
    """
    with ExitStack() as stack:
        logs: list[Log] = []
        if tensorboard is not None:
            logs.append(_tensorboard(tensorboard, stack))
        if wandb_project:
            logs.append(_wandb(wandb_project, stack))

        def tell(progress: TrainProgress) -> None:
            for log in logs:
                log(progress)

        yield tell


def scalars(progress: TrainProgress) -> dict[str, float]:
    """``JOB/figure`` → value, and the speed."""
    out = {"rows_per_second": progress.rows_per_second}
    for job in progress.jobs:
        out |= {
            f"{job.job.name}/fvu": job.fvu,
            f"{job.job.name}/l0": job.l0,
            f"{job.job.name}/dead": float(job.dead),
        }
    return out


def _tensorboard(folder: Path, stack: ExitStack) -> Log:
    try:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - optional package
    except ImportError as error:
        raise UserError("--tensorboard needs the package tensorboard; pip install it") from error
    writer: Any = SummaryWriter(str(folder))
    stack.callback(writer.close)

    def log(progress: TrainProgress) -> None:
        for name, value in scalars(progress).items():
            writer.add_scalar(name, value, progress.step)

    return log


def _wandb(project: str, stack: ExitStack) -> Log:
    try:
        wandb = importlib.import_module("wandb")
    except ImportError as error:
        raise UserError("--wandb needs the package wandb; pip install it") from error
    run: Any = wandb.init(project=project)
    stack.callback(run.finish)

    def log(progress: TrainProgress) -> None:
        run.log(scalars(progress), step=progress.step)

    return log

"""``bench train``: our trainer against SAELens' and sparsify's, same activations, same run.

Sparse autoencoders (SAELens cannot train transcoders) on 4 hook points × 3 seeds at d = 64,
F = 256, k = 8. Each peer trains 1M samples per model with its own trainer, in its best mode at the
best of three learning rates, both chosen on one hook point and seed; the target is the held-out FVU
that it then reaches itself. Ours has its default recipe but for the number of steps. It is run with
growing budgets, each a complete schedule, and the first that reaches the target counts with its
whole wall time. Held-out FVU is compared at equal inference L0. The peers live in an environment of
their own, ``$INTERLATENT_PEERS_VENV`` or ``~/.cache/interlatent-live/peers``.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from safetensors.torch import save_file

from interlatent_live.bench.report import BenchReport, BenchRow, bench_report, bench_row, median
from interlatent_live.errors import UserError
from interlatent_live.transcoders.acting import acting_policy
from interlatent_live.transcoders.collect import RolloutSettings, collect_rollouts
from interlatent_live.transcoders.config import Architecture, Target, TranscoderConfig
from interlatent_live.transcoders.dataset import ActivationDataset, HookRows, split_by_episode
from interlatent_live.transcoders.evaluation.reconstruction import reconstruction_summary
from interlatent_live.transcoders.training.finish import calibrated_threshold
from interlatent_live.transcoders.training.job import Job, hook_data
from interlatent_live.transcoders.training.recipe import Recipe
from interlatent_live.transcoders.training.trainer import Trainer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

PEERS_VARIABLE: Final = "INTERLATENT_PEERS_VENV"

_WIDTH, _FEATURES, _K = 64, 256, 8
_BATCH: Final = 1024
"""Rows per step of the peers, and of ours where steps per second are compared."""
_MODES: Final = {"saelens": ("batchtopk", "topk"), "sparsify": ("adam", "signum")}
_RATES: Final = {
    ("saelens", False): (1e-3, 4e-3, 1.6e-2),
    ("sparsify", False): (1e-3, 4e-3, 1.6e-2),
    ("saelens", True): (4e-3,),
    ("sparsify", True): (4e-3,),
}


@dataclass(frozen=True, slots=True)
class _Plan:
    """Sizes of one run."""

    hooks: tuple[tuple[str, str], ...]
    """(policy, hook point)."""
    seeds: int
    samples: int
    budgets: tuple[int, ...]
    episodes: int


_FULL: Final = _Plan(
    hooks=(
        ("lunarlander-ppo", "hidden.0"),
        ("lunarlander-ppo", "hidden.1"),
        ("cartpole-sb3-ppo", "hidden.0"),
        ("cartpole-sb3-ppo", "hidden.1"),
    ),
    seeds=3,
    samples=1_000_000,
    budgets=(102_400, 204_800, 307_200, 409_600, 512_000, 614_400, 819_200, 1_000_000),
    episodes=150,
)
_QUICK: Final = _Plan(
    hooks=(("lunarlander-ppo", "hidden.1"),),
    seeds=2,
    samples=200_000,
    budgets=(25_600, 38_400, 51_200, 76_800, 102_400, 200_000),
    episodes=40,
)


@dataclass(frozen=True, slots=True)
class _PeerRun:
    """What a peer did: the choice of its mode and rate, then all models with it."""

    sweep: tuple[dict[str, Any], ...]
    """One model per mode and rate."""
    final: dict[str, Any]


def run(*, quick: bool = False, device: str = "cpu") -> BenchReport:
    """Train, compare, report; a line on the terminal says what it is at.

    Args:
        quick: one hook point, two seeds, a fifth of the samples, one learning rate per peer.
        device: ``cpu`` or ``cuda``, for all alike.

    Raises:
        UserError: when the peers' environment is not there.
    """
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415 - only a terminal needs it

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task("collecting activations", total=None)
        return _run(
            _QUICK if quick else _FULL,
            device,
            quick=quick,
            tell=lambda text: bar.update(task, description=text),
        )


def _run(plan: _Plan, device: str, *, quick: bool, tell: Callable[[str], None]) -> BenchReport:
    python = peers_python()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = _activations(plan, Path(folder))
        shared = Path(folder) / "activations.safetensors"
        save_file(
            {
                f"{name}/{part}": torch.from_numpy(one.x[mask].copy())
                for name, one in rows.items()
                for part, mask in (
                    ("train", split_by_episode(one.episode).train),
                    ("test", split_by_episode(one.episode).test),
                )
            },
            shared,
        )
        peers = {}
        for peer in _MODES:
            tell(f"{peer}: choosing its mode and rate")
            sweep = _run_peer(
                python, peer, shared, plan, _choices(peer, quick=quick), device=device
            )
            best = min(sweep, key=_figure)
            tell(f"{peer}: {best['mode']}, rate {best['rate']:g}, all models")
            chosen = (best["mode"], float(best["rate"]))
            (final,) = _run_peer(python, peer, shared, plan, [chosen], device=device, whole=True)
            peers[peer] = _PeerRun(tuple(sweep), final)
    ours = _Ours(rows, plan, device)
    table: list[BenchRow] = []
    for peer, own in peers.items():
        tell(f"ours against {peer}")
        table += _against(peer, own, ours, plan)
    table += _floor(ours, plan, device)
    return bench_report(
        "train",
        table,
        notes=(_notes(plan),),
    )


def _notes(plan: _Plan) -> str:
    return (
        f"{len(plan.hooks)} hook points × {plan.seeds} seeds, d={_WIDTH}, F={_FEATURES}, k={_K}, "
        f"batch {_BATCH} (ours {Recipe().batch}, as in all of its recipe the default, but for the "
        f"number of steps), {plan.samples:,} samples per model for the peers, one thread. A peer's "
        "time and FVU are those of its best mode and learning rate by FVU (best of 2 modes × "
        "3 rates on one hook point and seed); FVU is held out, at "
        "inference L0 = k for all (thresholds recalibrated, the peers' too). Our time to a target "
        "is the whole wall time of the smallest budget that reaches it at every hook point (median "
        "over seeds)."
    )


def peers_python() -> Path:
    """Interpreter of the environment that holds sae-lens and eai-sparsify.

    Raises:
        UserError: when it is not there.
    """
    default = Path.home() / ".cache" / "interlatent-live" / "peers"
    python = Path(os.environ.get(PEERS_VARIABLE) or default) / "bin" / "python"
    if not python.exists():
        raise UserError(
            f"bench train needs an environment with the other trainers: python -m venv DIR, "
            f"DIR/bin/pip install torch==2.13.0 sae-lens eai-sparsify, {PEERS_VARIABLE}=DIR"
        )
    return python


def _activations(plan: _Plan, folder: Path) -> dict[str, HookRows]:
    """Outputs of each hook point, as the x of an autoencoder, by a name without slashes."""
    found = {}
    for name in dict.fromkeys(policy for policy, _ in plan.hooks):
        hooks = [hook for policy, hook in plan.hooks if policy == name]
        settings = RolloutSettings(episodes=plan.episodes, epsilon=0.05, copies=32)
        collect_rollouts(acting_policy(name), hooks, folder / name, settings)
        dataset = ActivationDataset(folder / name)
        for hook in hooks:
            rows = dataset.load(hook)
            found[f"{name}:{hook}"] = HookRows(f"{name}:{hook}", rows.y, rows.y, rows.episode)
    return found


def _choices(peer: str, *, quick: bool) -> list[tuple[str, float]]:
    return [(mode, rate) for mode in _MODES[peer] for rate in _RATES[peer, quick]]


def _figure(result: Mapping[str, Any]) -> float:
    """A peer's result as one number: held-out FVU, median over hook points of that over seeds."""
    return _overall({name: float(one["fvu"]) for name, one in result["scores"].items()})


def _run_peer(
    python: Path,
    peer: str,
    shared: Path,
    plan: _Plan,
    choices: Sequence[tuple[str, float]],
    *,
    device: str,
    whole: bool = False,
) -> list[dict[str, Any]]:
    """One result per (mode, rate): of all models, or of one hook point and seed."""
    names = [f"{policy}:{hook}" for policy, hook in plan.hooks]
    request = {
        "peer": peer,
        "activations": str(shared),
        "hooks": names if whole else names[:1],
        "choices": [list(choice) for choice in choices],
        "samples": plan.samples,
        "batch": _BATCH,
        "seeds": plan.seeds if whole else 1,
        "n_features": _FEATURES,
        "k": _K,
        "threads": 1,
        "device": device,
    }
    file = shared.with_name(f"{peer}.json")
    file.write_text(json.dumps(request), encoding="utf-8")
    script = Path(__file__).with_name("train_peers.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
    done = subprocess.run(  # noqa: S603 - our own script, the user's own interpreter
        [str(python), str(script), str(file)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise UserError(f"{peer} failed in its environment: {done.stderr.strip()[-500:]}")
    results: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return results


class _Ours:
    """Our trainer on the same rows; results by budget and architecture are kept."""

    def __init__(self, rows: Mapping[str, HookRows], plan: _Plan, device: str) -> None:
        self.plan = plan
        self.device = torch.device(device)
        self.data = {
            name: hook_data(
                one,
                split_by_episode(one.episode),
                target=Target.INPUT,
                normalise=Recipe().normalise,
                device=self.device,
            )
            for name, one in rows.items()
        }
        self._known: dict[tuple[int, int, Architecture], tuple[float, dict[str, float]]] = {}

    def train(
        self,
        samples: int,
        architecture: Architecture = Architecture.BATCHTOPK,
        *,
        batch: int = Recipe().batch,
    ) -> tuple[float, dict[str, float]]:
        """(Wall seconds of all models, held-out FVU by ``hook/seed``) at L0 = k."""
        key = (samples, batch, architecture)
        if key not in self._known:
            self._known[key] = self._train(samples, batch, architecture)
        return self._known[key]

    def _train(
        self, samples: int, batch: int, architecture: Architecture
    ) -> tuple[float, dict[str, float]]:
        recipe = Recipe(steps=max(1, samples // batch), batch=batch)
        config = TranscoderConfig(
            architecture=architecture,
            d_in=_WIDTH,
            d_out=_WIDTH,
            n_features=_FEATURES,
            k=_K,
            target=Target.INPUT,
        )
        jobs = [Job(name, config, seed) for name in self.data for seed in range(self.plan.seeds)]
        begin = time.perf_counter()
        trainer = Trainer(jobs, self.data, recipe, device=self.device)
        trainer.run()
        results = list(trainer.results())
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - begin
        scores = {}
        for job, transcoder in results:
            x, y = self.data[job.hook_point].test
            if transcoder.threshold is not None:
                pre = transcoder.pre_activations(x).numpy()
                transcoder.threshold.fill_(calibrated_threshold(pre, _K))
            scores[f"{job.hook_point}/{job.seed}"] = reconstruction_summary(transcoder, x, y)["fvu"]
        return seconds, scores


def _by_hook(scores: Mapping[str, float]) -> dict[str, float]:
    """Median over seeds per hook point."""
    hooks = {name.rpartition("/")[0] for name in scores}
    return {
        hook: median(value for name, value in scores.items() if name.rpartition("/")[0] == hook)
        for hook in sorted(hooks)
    }


def _overall(scores: Mapping[str, float]) -> float:
    return median(_by_hook(scores).values())


def _against(peer: str, own: _PeerRun, ours: _Ours, plan: _Plan) -> list[BenchRow]:
    chosen = own.final
    fvu = {name: float(one["fvu"]) for name, one in chosen["scores"].items()}
    target = _by_hook(fvu)
    label = f"{peer} ({chosen['mode']}, rate {chosen['rate']:g})"
    rows = []
    reached: tuple[int, float, dict[str, float]] | None = None
    for samples in plan.budgets:
        seconds, scores = ours.train(samples)
        if all(value <= target[hook] for hook, value in _by_hook(scores).items()):
            reached = (samples, seconds, scores)
            break
    if reached is not None:
        samples, seconds, scores = reached
        rows.append(
            bench_row(
                f"speed-up to the FVU that {peer} reaches ({samples:,} samples)",
                chosen["seconds"] / seconds,
                "×",
                reference=f"{label}: {chosen['seconds']:.1f} s to FVU {_overall(fvu):.5f}",
                reference_value=1.0,
                goal="value >= 5",
            )
        )
        rows.append(
            bench_row(
                f"our wall time to that FVU, all models ({_overall(scores):.5f})",
                seconds,
                "s",
                reference=label,
                reference_value=chosen["seconds"],
                goal="shown",
            )
        )
    else:
        rows.append(
            bench_row(
                f"FVU after our largest budget, which misses that of {peer}",
                _overall(ours.train(plan.budgets[-1])[1]),
                "FVU",
                reference=label,
                reference_value=_overall(fvu),
                goal="ratio <= 1",
            )
        )
    seconds, scores = ours.train(plan.samples)
    rows.append(
        bench_row(
            f"speed-up at equal samples ({plan.samples:,} per model)",
            chosen["seconds"] / seconds,
            "×",
            reference=label,
            reference_value=1.0,
            goal="value >= 2",
        )
    )
    rows.append(
        bench_row(
            "FVU at equal samples",
            _overall(scores),
            "FVU",
            reference=label,
            reference_value=_overall(fvu),
            goal="shown",
        )
    )
    return rows + _identical_topk(peer, own, ours, plan)


def _identical_topk(peer: str, own: _PeerRun, ours: _Ours, plan: _Plan) -> list[BenchRow]:
    """Steps per second with TopK on both sides and the same batch; the peer's fastest run."""
    each = plan.samples // _BATCH
    done = [(result, each) for result in own.sweep]
    done.append((own.final, each * len(plan.hooks) * plan.seeds))
    same = [(one, count) for one, count in done if one["mode"] in ("topk", "adam")]
    fastest, count = max(same, key=lambda one: one[1] / float(one[0]["seconds"]))
    theirs = count / float(fastest["seconds"])
    steps = each * len(plan.hooks) * plan.seeds
    seconds, _ = ours.train(plan.samples, Architecture.TOPK, batch=_BATCH)
    return [
        bench_row(
            f"model steps per second, TopK and batch {_BATCH} on both sides",
            steps / seconds,
            "1/s",
            reference=f"{peer} ({fastest['mode']})",
            reference_value=theirs,
            goal="shown",
        )
    ]


def _floor(ours: _Ours, plan: _Plan, device: str) -> list[BenchRow]:
    """Our time beside dense products alone: the encoder's, and all five that ignore sparsity."""
    seconds, _ = ours.train(plan.samples)
    batch = Recipe().batch
    x = torch.randn(1, batch, _WIDTH, device=device)
    features = torch.randn(1, batch, _FEATURES, device=device)
    W = torch.randn(1, _WIDTH, _FEATURES, device=device)

    def five() -> None:
        torch.bmm(x, W)
        torch.bmm(features, W.mT)
        torch.bmm(x, W)
        torch.bmm(features.mT, x)
        torch.bmm(x.mT, features)

    steps = plan.samples // batch * len(plan.hooks) * plan.seeds
    return [
        bench_row(
            f"our wall time at equal samples, against {products}",
            seconds,
            "s",
            reference=f"{products} per step and model, nothing else",
            reference_value=_time_of(work, device) * steps,
            goal="shown",
        )
        for products, work in (
            ("the encoder's dense product", lambda: torch.bmm(x, W)),
            ("five dense products", five),
        )
    ]


def _time_of(work: Callable[[], object], device: str) -> float:
    """Median seconds of one call."""
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        for _ in range(40):
            work()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        times.append((time.perf_counter() - begin) / 40)
    return median(times)

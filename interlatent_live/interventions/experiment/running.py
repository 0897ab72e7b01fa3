"""An experiment from its setup to its report, in a folder; started again, it goes on.

The order is the point: calibrate and select on their own seeds, write the plan into the audit,
then test. Every arm that was played is kept in a file, so a killed run loses one arm. Once the plan
is in the audit, another setup, another policy or another transcoder is refused here for good.
"""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
import torch

from interlatent_live.audit.log import FIRST_KEY, LOG, STATE, AuditLog, read_key, verify
from interlatent_live.errors import MismatchError, UserError
from interlatent_live.interventions.experiment.analysis import judge, paired, place
from interlatent_live.interventions.experiment.dictionary import Augmented, augmented, biases
from interlatent_live.interventions.experiment.live import Arm, Live, Played, Service
from interlatent_live.interventions.experiment.playing import Bare, Stage, Start
from interlatent_live.interventions.experiment.selecting import (
    Calibration,
    bias_arms,
    candidates,
    choose,
    feature_arms,
    hypothesis,
)
from interlatent_live.interventions.experiment.setup import KINDS, Plan, Setup, Unit, When
from interlatent_live.policies.mlp import MlpPolicy
from interlatent_live.transcoders.acting import acting_policy
from interlatent_live.transcoders.native import check_binding, load_transcoder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from interlatent_live.interventions.experiment.setup import Hypothesis
    from interlatent_live.transcoders.acting import ActingPolicy
    from interlatent_live.transcoders.native import LoadedTranscoder

PLAN: Final = "plan.json"
REPORT: Final = "report.json"
HEAD: Final = "head"
UNTOUCHED: Final = Arm("untouched")
DIRECTIONS_SEED: Final = 77
RESAMPLING_SEED: Final = 78
CALIBRATION_ROWS: Final = 20_000
FEWEST_STATES: Final = 10
"""Cloned states that also a small selection is spread over."""


def run_experiment(
    setup: Setup, base: Path, folder: Path, say: Callable[[str, int, int], None]
) -> dict[str, Any]:
    """Run it, or what is left of it; returns the report as plain values.

    Args:
        setup: what to do.
        base: folder that a relative path of the transcoder is in.
        folder: for everything that is kept; made.
        say: told what is played, how many of how many.

    Raises:
        UserError: when something cannot be had, or this folder holds another experiment's plan.
        MismatchError: when the transcoder is not the policy's.
    """
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    policy = acting_policy(setup.policy, environment=setup.environment)
    loaded = load_transcoder(base / setup.transcoder)
    hook_point = loaded.provenance.hook_point
    check_binding(
        loaded.provenance, loaded.transcoder.identity, policy_hash=policy.policy_hash,
        hook_point=hook_point,
    )  # fmt: skip
    if not isinstance(policy.module, MlpPolicy) or HEAD in hook_point:
        raise UserError("an experiment needs a plain policy and a hook point before its head")
    _refuse_another(folder, setup, policy, loaded)
    stage = Stage(policy.environment, setup.copies, setup.horizon, setup.kick)
    stage.open()
    try:
        starts = _starts(setup, stage, policy)
        calibration = _calibrate(setup, stage, policy, loaded)
        dictionary = augmented(loaded, calibration.y, setup.sizes.per_kind, DIRECTIONS_SEED)
        runner = _Runner(setup, policy, loaded, calibration, dictionary, stage, folder, say)
        plan = _planned(folder)
        if plan is None:
            plan = runner.select(*starts["selection"])
            _preregister(folder, plan)
        seal = _seal_of(folder, plan)
        results = runner.test(plan, *starts["held_out"])
    finally:
        stage.close()
    report = {
        "plan": msgspec.to_builtins(plan),
        "plan_sha256": plan.digest(),
        "preregistered": seal,
        "environment": policy.environment,
        **results,
    }
    _conclude(folder, plan, report)
    return report


# ------------------------------------------------------------------------------ the audit's part


def _audit(folder: Path) -> Path:
    return folder / "audit"


def _entries(folder: Path, kind: str) -> list[Any]:
    """Entries of a kind, in an audit that verifies; none where there is no audit yet."""
    audit = _audit(folder)
    if not (audit / LOG).exists():
        return []
    verify(audit / LOG, read_key(audit / FIRST_KEY), state=audit / STATE)
    with AuditLog(audit) as log:
        return [entry for entry in log.entries() if entry.kind == kind]


def _planned(folder: Path) -> Plan | None:
    """The plan that the audit holds."""
    for entry in _entries(folder, "preregistered"):
        return msgspec.convert(entry.body["plan"], Plan)
    return None


def _refuse_another(
    folder: Path, setup: Setup, policy: ActingPolicy, loaded: LoadedTranscoder
) -> None:
    plan = _planned(folder)
    if plan is None:
        return
    for what, now, then in (
        ("setup", setup.digest(), plan.setup.digest()),
        ("policy", policy.policy_hash, plan.policy_hash),
        ("transcoder", loaded.transcoder.identity, plan.transcoder),
    ):
        if now != then:
            raise UserError(
                f"the {what} is not the one that was preregistered in {folder} ({then[:19]}, now "
                f"{now[:19]}): what was promised cannot be changed; begin another experiment in "
                "another folder"
            )


def _preregister(folder: Path, plan: Plan) -> None:
    with AuditLog(_audit(folder)) as log:
        log.append("preregistered", {"plan": msgspec.to_builtins(plan), "sha256": plan.digest()})
    _write(folder / PLAN, plan)


def _seal_of(folder: Path, plan: Plan) -> dict[str, Any]:
    """Where the plan stands in the audit.

    Raises:
        UserError: when it does not.
    """
    for entry in _entries(folder, "preregistered"):
        if entry.body["sha256"] == plan.digest():
            return {"entry": entry.n, "seal": entry.seal, "time_ns": entry.time_ns}
    raise UserError(f"the audit in {_audit(folder)} does not hold the plan")


def _conclude(folder: Path, plan: Plan, report: dict[str, Any]) -> None:
    """Seal the report's hash, and count what the audit holds."""
    text = msgspec.json.encode(report, order="sorted")
    digest = hashlib.sha256(text).hexdigest()
    known = [entry for entry in _entries(folder, "concluded") if entry.body["report"] == digest]
    if not known:
        with AuditLog(_audit(folder)) as log:
            log.append("concluded", {"plan": plan.digest(), "report": digest})
    applied = _entries(folder, "applied")
    audit = _audit(folder)
    checked = verify(audit / LOG, read_key(audit / FIRST_KEY), state=audit / STATE)
    report["audit"] = {
        "entries": checked.entries,
        "permitted": len(_entries(folder, "permitted")),
        "applied": sum(entry.body["operation"] == "intervene" for entry in applied),
    }
    _write(folder / REPORT, report)


def _write(path: Path, value: Any) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n")


# ------------------------------------------------------------------------------------- starts


def _starts(
    setup: Setup, stage: Stage, policy: ActingPolicy
) -> dict[str, tuple[list[Start], NDArray[np.int64]]]:
    """Starts and their units, for selection and test."""
    out = {}
    for name, first, count in (
        ("selection", setup.seeds.selection, setup.sizes.selection),
        ("held_out", setup.seeds.held_out, setup.sizes.held_out),
    ):
        if setup.unit is Unit.EPISODES:
            starts = [Start(first + i) for i in range(count)]
            out[name] = starts, np.arange(count)
            continue
        states = min(count, max(FEWEST_STATES, count // setup.sizes.branches))
        before = len(stage.states)
        stage.clone_states(range(first, first + states), policy)
        # One branch of each state, then the next of each: any prefix has every state in it.
        which = [i % states for i in range(count)]
        starts = [Start(first + 10_000 + i, before + state) for i, state in enumerate(which)]
        out[name] = starts, np.array(which)
    return out


def _calibrate(
    setup: Setup, stage: Stage, policy: ActingPolicy, loaded: LoadedTranscoder
) -> Calibration:
    """Untouched episodes, with what the hook point did in each step."""
    module = policy.module.get_submodule(loaded.provenance.hook_point)
    rows: list[tuple[torch.Tensor, torch.Tensor]] = []
    handle = module.register_forward_hook(
        lambda _, args, output: rows.append((args[0].detach().clone(), output.detach().clone()))
    )
    single = Stage(stage.environment, 1, setup.horizon, 0.0)
    single.open()
    episodes: list[int] = []
    try:
        for i in range(setup.sizes.calibration):
            before = len(rows)
            single.play([Start(setup.seeds.calibration + i)], Bare(policy))
            episodes += [i] * (len(rows) - before)
            if len(rows) > CALIBRATION_ROWS:
                break
    finally:
        handle.remove()
        single.close()
    x, y = (torch.cat([row[part] for row in rows]) for part in (0, 1))
    features = loaded.transcoder.encode(x).numpy()
    return Calibration(y.numpy(), features, np.array(episodes))


# ----------------------------------------------------------------------------------- the stages


@dataclass(slots=True)
class _Runner:
    """Plays arms live, or takes them from where they were kept."""

    setup: Setup
    policy: ActingPolicy
    loaded: LoadedTranscoder
    calibration: Calibration
    dictionary: Augmented
    stage: Stage
    folder: Path
    say: Callable[[str, int, int], None]

    def select(self, starts: Sequence[Start], units: NDArray[np.int64]) -> Plan:
        """Choose what will be tested, on the selection starts."""
        setup, transcoder = self.setup, self.loaded.transcoder
        point = self.loaded.provenance.hook_point
        module = self.policy.module
        tail = module.tail_from(point) if isinstance(module, MlpPolicy) else None
        chosen = candidates(self.calibration, transcoder, tail, setup.sizes.candidates)
        arms = feature_arms(setup, point, self.calibration, transcoder, chosen)
        constant = bias_arms(setup, HEAD, self._head.out_features)
        total = (len(arms) + len(constant)) * len(setup.targets)
        with self._live(f"{setup.name}: selection", total) as play:
            found = []
            for target in setup.targets:
                pick = {
                    "starts": starts,
                    "units": units,
                    "screening": setup.sizes.screening,
                    "finalists": setup.sizes.finalists,
                }
                metrics = self.stage.metrics
                best = choose(arms, target, metrics, play, **pick)  # type: ignore[arg-type]  # one dict for both calls
                bias = choose(constant, target, metrics, play, **pick)  # type: ignore[arg-type]  # likewise
                feature = best[0].feature
                found.append(
                    hypothesis(
                        target, best, bias,
                        amount=self.calibration.amount(feature),
                        norm=float(transcoder.W_dec[feature].norm()),
                        tried=(len(arms), len(constant)),
                    )
                )  # fmt: skip
        return Plan(
            setup=setup,
            policy_hash=self.policy.policy_hash,
            transcoder=transcoder.identity,
            hook_point=point,
            dictionary=self.dictionary.loaded.transcoder.identity,
            hypotheses=tuple(found),
            metrics=self.stage.metrics,
        )

    def test(self, plan: Plan, starts: Sequence[Start], units: NDArray[np.int64]) -> dict[str, Any]:
        """Play everything that the plan promises, and judge it.

        Raises:
            MismatchError: when the controls' directions are not the plan's.
        """
        if self.dictionary.loaded.transcoder.identity != plan.dictionary:
            raise MismatchError(
                f"the controls' directions are {self.dictionary.loaded.transcoder.identity[:19]}, "
                f"the plan says {plan.dictionary[:19]}: calibration came out otherwise here"
            )
        some = starts[: self.setup.sizes.controls]
        arms = [self._arms(one) for one in plan.hypotheses]
        total = sum(len(one.controls) + 6 for one in arms) + 2
        reason = f"{plan.setup.name}, plan {plan.digest()[:16]}"
        with self._live(reason, total) as play:
            untouched = play(UNTOUCHED, starts).values
            again = play(Arm("untouched again"), starts).values
            played = [
                {
                    "treatment": play(one.treatment, starts),
                    "off": play(one.off, starts),
                    "bias": play(one.bias, starts),
                    "doses": [(arm, play(arm, some)) for arm in one.doses],
                    "controls": [(kind, arm, play(arm, some)) for kind, arm in one.controls],
                }
                for one in arms
            ]
        return _report(plan, untouched, again, played, units)

    @property
    def _head(self) -> torch.nn.Linear:
        head = self.policy.module.get_submodule(HEAD)
        if not isinstance(head, torch.nn.Linear):
            raise UserError("the policy's head is no linear map")
        return head

    def _arms(self, one: Hypothesis) -> _Arms:
        point = self.loaded.provenance.hook_point
        transcoder = self.loaded.transcoder
        sign = 1.0 if one.value > 0 else -1.0

        def control(feature: int, value: float) -> Arm:
            return Arm(f"control {feature}", point, feature, value, one.when, one.feature)

        def steer(value: float, when: When, name: str) -> Arm:
            return Arm(name, point, one.feature, value, when, one.feature)

        random = np.random.default_rng([DIRECTIONS_SEED, one.feature])
        others = [int(f) for f in self.calibration.live() if f != one.feature]
        if len(others) < self.setup.sizes.per_kind:
            raise UserError(
                f"only {len(others)} other features are live, and the plan promises "
                f"{self.setup.sizes.per_kind} as controls: take a wider transcoder"
            )
        random.shuffle(others)
        chosen = others[: self.setup.sizes.per_kind]
        norms = transcoder.W_dec.norm(dim=1)
        controls = (
            [(KINDS[0], control(f, one.norm)) for f in self.dictionary.isotropic]
            + [(KINDS[1], control(f, one.norm)) for f in self.dictionary.covariance]
            + [(KINDS[2], control(f, sign * one.norm / float(norms[f]))) for f in chosen]
        )
        return _Arms(
            steer(one.value, one.when, "treatment"),
            steer(one.value, When.OFF, "off-moments"),
            Arm("best constant bias", HEAD, one.bias_output, one.bias),
            tuple(steer(k * one.value, one.when, f"dose {k:+g}") for k in (-1.0, 0.5)),
            tuple(controls),
        )

    @contextmanager
    def _live(self, reason: str, total: int) -> Iterator[Callable[[Arm, Sequence[Start]], Played]]:
        """An agent under control for a while; only begun where something is left to play."""
        head = self._head
        point = self.loaded.provenance.hook_point
        dictionaries = {
            point: self.dictionary.loaded,
            HEAD: biases(self.loaded, HEAD, head.in_features, head.out_features),
        }
        bounds = {
            point: self.setup.bound * self.calibration.size * (1 + 1e-6),
            HEAD: max(map(abs, self.setup.biases)) * (1 + 1e-6),
        }
        with (
            Service(self.folder) as service,
            Live(
                service, self.policy, dictionaries, bounds, copies=self.setup.copies,
                folder=self.folder / "agent",
            ) as live,
        ):  # fmt: skip
            count = 0

            def play(arm: Arm, starts: Sequence[Start]) -> Played:
                nonlocal count
                file = self._file(arm, starts)
                kept = _read(file)
                if kept is not None:
                    return kept
                self.say(arm.name, count, total)
                count += 1
                out = live.play(arm, starts, self.stage, reason)
                _keep(file, out)
                return out

            yield play

    def _file(self, arm: Arm, starts: Sequence[Start]) -> Path:
        """Where an arm is kept; its name holds all that decides what it measures."""
        said = msgspec.json.encode(
            [asdict(arm), [asdict(one) for one in starts], self.setup.digest(),
             self.policy.policy_hash, self.dictionary.loaded.transcoder.identity]
        )  # fmt: skip
        return self.folder / "arms" / f"{hashlib.sha256(said).hexdigest()[:24]}.npz"


@dataclass(frozen=True, slots=True)
class _Arms:
    """What is played for one hypothesis."""

    treatment: Arm
    off: Arm
    bias: Arm
    doses: tuple[Arm, ...]
    controls: tuple[tuple[str, Arm], ...]


def _read(file: Path) -> Played | None:
    if not file.exists():
        return None
    with np.load(file, allow_pickle=False) as kept:
        return Played(kept["values"], float(kept["steered"]), float(kept["largest_norm"]))


def _keep(file: Path, played: Played) -> None:
    file.parent.mkdir(exist_ok=True)
    beside = file.with_suffix(".new")
    with beside.open("wb") as out:
        np.savez(
            out, values=played.values, steered=played.steered, largest_norm=played.largest_norm
        )
    beside.replace(file)


# ----------------------------------------------------------------------------------- the report


def _report(
    plan: Plan,
    untouched: NDArray[np.float64],
    again: NDArray[np.float64],
    played: list[dict[str, Any]],
    units: NDArray[np.int64],
) -> dict[str, Any]:
    metrics = list(plan.metrics)
    few = plan.setup.sizes.controls
    tests, places, rows = [], [], []
    for one, arms in zip(plan.hypotheses, played, strict=True):
        column, direction = metrics.index(one.metric), one.direction
        base, base_few = untouched[:, column], untouched[:few, column]
        treatment = arms["treatment"].values[:, column]
        bias = arms["bias"].values[:, column]
        tests.append(
            (paired(treatment, base, units, direction), paired(treatment, bias, units, direction))
        )
        controls = np.array([item.values[:, column] for _, _, item in arms["controls"]])
        places.append(
            place(
                treatment[:few], controls, base_few, units[:few], direction=direction,
                seed=RESAMPLING_SEED,
            )
        )  # fmt: skip
        rows.append(_details(plan, one, arms, untouched, units))
    verdicts = judge([a for a, _ in tests], [b for _, b in tests], places)
    hypotheses = [
        {
            "sentence": one.sentence,
            "verdict": asdict(verdict),
            "over_untouched": asdict(test[0]),
            "over_bias": asdict(test[1]),
            "among_controls": asdict(where),
            **row,
        }
        for one, verdict, test, where, row in zip(
            plan.hypotheses, verdicts, tests, places, rows, strict=True
        )
    ]
    return {
        "hypotheses": hypotheses,
        "untouched": {
            name: {"mean": float(untouched[:, i].mean()), "sd": float(untouched[:, i].std(ddof=1))}
            for i, name in enumerate(metrics)
        },
        "untouched_twice": float(np.abs(again - untouched).max()),
        "units": len(np.unique(units)),
        "starts": len(untouched),
    }


def _details(
    plan: Plan,
    one: Hypothesis,
    arms: dict[str, Any],
    untouched: NDArray[np.float64],
    units: NDArray[np.int64],
) -> dict[str, Any]:
    """Everything that is reported beside the tests."""
    metrics, few = list(plan.metrics), plan.setup.sizes.controls
    column, direction = metrics.index(one.metric), one.direction
    base = untouched[:, column]

    def effect(item: Played, n: int) -> dict[str, Any]:
        found = paired(item.values[:n, column], base[:n], units[:n], direction)
        return {**asdict(found), "steered": item.steered, "largest_norm": item.largest_norm}

    return {
        "treatment": effect(arms["treatment"], len(untouched)),
        "off_moments": effect(arms["off"], len(untouched)),
        "best_bias": effect(arms["bias"], len(untouched)),
        "doses": {arm.name: effect(item, few) for arm, item in arms["doses"]},
        "controls": [
            {"kind": kind, "feature": arm.feature, "value": arm.value, **effect(item, few)}
            for kind, arm, item in arms["controls"]
        ],
        "off_target": {
            name: asdict(paired(arms["treatment"].values[:, i], untouched[:, i], units))
            for i, name in enumerate(metrics)
            if name != one.metric
        },
    }

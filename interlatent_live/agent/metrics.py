"""From observations, actions and infos to one row of named metrics, each at its right time.

A row of step t holds what was true *before* the action (state, clock and internal metrics, read
from obs_t) and what came *of* it (action and outcome metrics, read after the step). Getting this
wrong by one step is the classic mistake, so it is done in one place, by role: everything that can
be known from an observation is read once per observation (a *snapshot*), and a row takes its state
columns from snapshot t and its outcome columns from snapshot t + 1.

Computing columns costs tens of microseconds a step and a hundredth of that in batches. So where all
of them are functions of observation, action and outcome, they are *deferred*: these travel raw
behind the row through the ring, and :meth:`MetricSet.finish` computes many rows at once in the
sender's thread.

No Gymnasium import: spaces are looked at by their attributes, so any look-alike will do.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

import numpy as np

from interlatent_live.errors import UserError
from interlatent_live.stream import MetricSpec, Role

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

MAX_OBSERVATION: Final = 64
"""Observations with more numbers than this (images, RAM) are not metrics unless asked for."""

_LATER: Final = (Role.ACTION, Role.OUTCOME)


@runtime_checkable
class MetricPack(Protocol):
    """Named metrics of one kind of environment.

    ``extract`` returns one number per spec, in their order, NaN where undefined. It is called on
    each observation; of its columns, those with the role action or outcome describe the step that
    led to the observation, all others the observation itself.
    """

    @property
    def specs(self) -> Sequence[MetricSpec]:
        """The metrics, in the order of ``extract``'s numbers."""
        ...

    def extract(self, obs: Any, info: Mapping[str, Any], env: Any) -> ArrayLike:
        """The numbers for one observation of one environment."""
        ...


def observation_specs(space: Any, names: Sequence[str] | None = None) -> tuple[MetricSpec, ...]:
    """Specs for the parts of an observation, flattened in C order: ``obs_0``, ``obs_1`` and on.

    Args:
        space: a Box, Discrete, MultiDiscrete, MultiBinary or a Dict of them (by attributes).
        names: names of the parts instead.

    Raises:
        UserError: when the number of names is not the number of parts.
    """
    parts = [spec for name, inner in _leaves("obs", space) for spec in _box_specs(name, inner)]
    if names is None:
        return tuple(parts)
    if len(names) != len(parts):
        raise UserError(
            f"the observation has {len(parts)} parts, but {len(names)} names were given for them"
        )
    return tuple(replace(part, name=name) for part, name in zip(parts, names, strict=True))


def action_specs(space: Any, names: Sequence[str] | None = None) -> tuple[MetricSpec, ...]:
    """Specs for an action: ``action`` (the index) or ``action_0`` and on."""
    parts = [spec for name, part in _leaves("action", space) for spec in _box_specs(name, part)]
    if names is not None and len(names) == len(parts) and not hasattr(space, "n"):
        parts = [replace(part, name=name) for part, name in zip(parts, names, strict=True)]
    return tuple(replace(part, role=Role.ACTION) for part in parts)


def _leaves(name: str, space: Any) -> list[tuple[str, Any]]:
    inner = getattr(space, "spaces", None)
    if inner is None:
        return [(name, space)]
    items = inner.items() if hasattr(inner, "items") else enumerate(inner)
    return [leaf for key, value in items for leaf in _leaves(str(key), value)]


def _box_specs(name: str, space: Any) -> list[MetricSpec]:
    shape = getattr(space, "shape", None)
    size = int(np.prod(shape)) if shape else 1
    if not shape:
        return [MetricSpec(name)]
    return [MetricSpec(f"{name}_{i}") for i in range(size)]


def flatten(value: Any) -> NDArray[np.float64]:
    """The numbers of an observation or action in the order of its specs, float64 [k]."""
    if isinstance(value, dict):
        return np.concatenate([flatten(part) for part in value.values()])
    if isinstance(value, tuple):
        return np.concatenate([flatten(part) for part in value])
    return np.asarray(value, np.float64).reshape(-1)


def flatten_many(value: Any, count: int) -> NDArray[np.float64]:
    """The same for ``count`` environments at once, float64 [count, k]."""
    if isinstance(value, dict):
        return np.concatenate([flatten_many(part, count) for part in value.values()], axis=1)
    if isinstance(value, tuple):
        return np.concatenate([flatten_many(part, count) for part in value], axis=1)
    return np.asarray(value, np.float64).reshape(count, -1)


class MetricSet:
    """The metric columns of a tap and the ways to fill them.

    Order: the pack's, observation parts, info keys, other declared metrics, ``time_in_episode``,
    action, ``reward``, ``terminated``, ``truncated``. A name that occurs twice keeps its first
    place, so a pack may define any of the built-in ones itself.

    Args:
        pack: metrics of an environment.
        observation: specs for the parts of the observation (:func:`observation_specs`).
        info: keys of the info dict, as names or specs; outcomes unless the spec says otherwise.
        declared: metrics that the caller passes by name or as a whole row.
        action: specs for the action (:func:`action_specs`).
        measure_action: maps actions [n] or [n, A] to the columns of ``action``; unless given they
            are the action's numbers.
        continuous: whether actions are vectors [n, A] rather than indices [n].
        reward: whether the reward is a metric.
        ends: whether ``terminated`` and ``truncated`` are metrics.
        clock: whether ``time_in_episode`` is a metric.
        step_seconds: seconds of simulated time per step; unless given the clock counts steps.
        defer: how many numbers an observation and an action have, where columns may be computed
            later and in batches (a pack then has ``extract_batch`` and only metrics of the
            observation); None not to. The observation's may be 0 where nothing is read from it.
    """

    def __init__(
        self,
        pack: MetricPack | None = None,
        *,
        observation: Sequence[MetricSpec] = (),
        info: Iterable[str | MetricSpec] = (),
        declared: Iterable[str | MetricSpec] = (),
        action: Sequence[MetricSpec] = (),
        measure_action: Callable[[NDArray[Any]], NDArray[np.float64]] | None = None,
        continuous: bool = False,
        reward: bool = False,
        ends: bool = False,
        clock: bool = False,
        step_seconds: float | None = None,
        defer: tuple[int, int] | None = None,
    ) -> None:
        self.pack = pack
        self._extract_batch = getattr(pack, "extract_batch", None)
        self._measure_action = measure_action
        self._continuous = continuous
        self._tick = step_seconds or 1.0
        infos = tuple(
            MetricSpec(key, role=Role.OUTCOME) if isinstance(key, str) else key for key in info
        )
        self._info_keys = tuple(spec.name for spec in infos)
        self._deferred = defer is not None
        # What a snapshot holds: the pack's numbers and the observation's, or the observation alone.
        self._n_pack = len(pack.specs) if pack is not None else 0
        self._n_observation = len(observation)
        if defer is not None:
            self._n_pack, self._n_observation = defer[0], 0
        self.width = self._n_pack + self._n_observation + len(infos)
        """Numbers in a snapshot."""
        self._specs: list[MetricSpec] = []
        self._columns: dict[str, int] = {}
        self._place_seen(pack.specs if pack is not None else (), observation, infos)
        for spec in declared:
            self._add(MetricSpec(spec) if isinstance(spec, str) else spec)
        self._clock = None
        if clock:
            unit = "step" if step_seconds is None else "s"
            self._clock = self._add(
                MetricSpec("time_in_episode", unit, Role.CLOCK, "since the reset")
            )
        actions = [(self._add(spec), source) for source, spec in enumerate(action)]
        placed = [(to, source) for to, source in actions if to is not None]
        self._action_to, self._action_from = _pairs(placed)
        self._has_action = bool(placed)
        self._reward = self._add(MetricSpec("reward", role=Role.OUTCOME)) if reward else None
        self._terminated, self._truncated = self._place_ends() if ends else (None, None)
        self.specs = tuple(self._specs)
        self.row_width = len(self.specs)
        """Numbers in a row on its way: the metrics and, if deferred, what they are made of."""
        self._raw = self._raw_action = slice(0, 0)
        if defer is not None:
            self._raw_action = slice(len(self.specs), len(self.specs) + defer[1])
            self._mark = self._raw_action.stop
            self._raw = slice(self._mark + 5, self._mark + 5 + defer[0])
            self.row_width = self._raw.stop

    def _add(self, spec: MetricSpec) -> int | None:
        """A column for a metric; None when there is one of that name."""
        if spec.name in self._columns:
            return None
        self._columns[spec.name] = len(self._specs)
        self._specs.append(spec)
        return len(self._specs) - 1

    def _place_seen(
        self,
        pack: Sequence[MetricSpec],
        observation: Sequence[MetricSpec],
        infos: Sequence[MetricSpec],
    ) -> None:
        """Columns that are read from observations and infos, and from where in a snapshot."""
        own = [(self._add(spec), i, spec) for i, spec in enumerate(pack)]
        parts = [(self._add(spec), i, spec) for i, spec in enumerate(observation, len(own))]
        told = enumerate(infos, self._n_pack + self._n_observation)
        placed = [(self._add(spec), source, spec) for source, spec in told]
        self._pack_to, self._pack_from = _pairs([(to, i) for to, i, _ in own if to is not None])
        self._parts_to, self._parts_from = _pairs(
            [(to, i - len(own)) for to, i, _ in parts if to is not None]
        )
        if not self._deferred:
            placed = own + parts + placed
        kept = [(to, source, spec.role in _LATER) for to, source, spec in placed if to is not None]
        now = [(to, source) for to, source, later in kept if not later]
        later = [(to, source) for to, source, later in kept if later]
        self._now_to, self._now_from = _pairs(now)
        self._later_to, self._later_from = _pairs(later)
        self._has_now = bool(now)
        self.needs_next = bool(later)
        """Whether a row has columns that are read from the observation after the step."""

    def _place_ends(self) -> tuple[int | None, int | None]:
        role = Role.OUTCOME
        return (
            self._add(MetricSpec("terminated", "", role, "the step ended the episode")),
            self._add(MetricSpec("truncated", "", role, "the step met a time limit")),
        )

    @classmethod
    def of(cls, metrics: MetricSet | MetricPack | Iterable[str | MetricSpec] | None) -> MetricSet:
        """A set from whatever names metrics: itself, a pack, or a list of names and specs.

        Raises:
            UserError: when it is none of these, or when a name is given twice.
        """
        if metrics is None:
            return cls()
        if isinstance(metrics, MetricSet):
            return metrics
        if isinstance(metrics, MetricPack):
            return cls(metrics, reward=True)
        if isinstance(metrics, (str, bytes)):
            raise UserError(f"metrics is the string {metrics!r}; give a list of names")
        declared = tuple(metrics)
        names = [spec if isinstance(spec, str) else spec.name for spec in declared]
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"the metric {name!r} is named twice")
        return cls(declared=declared)

    @classmethod
    def from_env(
        cls,
        env: Any,
        pack: MetricPack | None = None,
        *,
        observation: bool | Sequence[str] | None = None,
        info: Iterable[str | MetricSpec] = (),
        declared: Iterable[str | MetricSpec] = (),
    ) -> MetricSet:
        """All metrics of a Gymnasium environment or vector environment.

        Args:
            env: has ``observation_space`` and ``action_space`` (or their ``single_`` forms).
            pack: metrics with physical names and units, where there are some for this environment.
            observation: whether the observation's parts are metrics, or their names; unless said,
                they are when there is no pack and they are at most ``MAX_OBSERVATION``.
            info: keys of the info dict to stream.
            declared: further metrics, passed to the tap by name.
        """
        space = getattr(env, "single_observation_space", None) or env.observation_space
        action = getattr(env, "single_action_space", None) or env.action_space
        if observation is None or observation is True:
            parts = observation_specs(space)
            wanted = observation is True or (pack is None and len(parts) <= MAX_OBSERVATION)
            parts = parts if wanted else ()
        elif observation is False:
            parts = ()
        else:
            parts = observation_specs(space, observation)
        # The packs of interlatent_live.environments also know what their actions and time mean.
        family = getattr(pack, "family", None)
        shape: tuple[int, ...] = tuple(getattr(space, "shape", None) or ())
        reads = pack is not None or len(parts) > 0
        pure = pack is None or (
            hasattr(pack, "extract_batch") and not any(spec.role in _LATER for spec in pack.specs)
        )
        flat = not hasattr(action, "spaces") and len(getattr(action, "shape", ()) or ()) <= 1
        defer = None
        if pure and flat and (len(shape) == 1 or not reads):
            defer = (shape[0] if reads else 0, len(_box_specs("action", action)))
        return cls(
            pack,
            observation=parts,
            info=info,
            declared=declared,
            action=action_specs(action) if family is None else family.action_specs,
            measure_action=None if family is None else family.measure_actions,
            continuous=bool(getattr(action, "shape", ())),
            reward=True,
            ends=True,
            clock=True,
            step_seconds=None if family is None else family.step_seconds,
            defer=defer,
        )

    def __len__(self) -> int:
        return len(self.specs)

    # -- snapshots ------------------------------------------------------------------------------

    def observe(self, obs: Any, info: Mapping[str, Any], env: Any) -> NDArray[np.float64]:
        """Everything an observation tells, float64 [width]."""
        snapshot = np.empty(self.width)
        k = self._n_pack
        if self._deferred:
            if k:
                snapshot[:k] = obs
        elif self.pack is not None:
            snapshot[:k] = self.pack.extract(obs, info, env)
        if self._n_observation:
            snapshot[k : k + self._n_observation] = flatten(obs)
            k += self._n_observation
        for key in self._info_keys:
            snapshot[k] = _number(info.get(key))
            k += 1
        return snapshot

    def observe_info(self, info: Mapping[str, Any]) -> NDArray[np.float64]:
        """What an info dict alone tells, float64 [width], NaN elsewhere."""
        snapshot = np.full(self.width, np.nan)
        for k, key in enumerate(self._info_keys, self._n_pack + self._n_observation):
            snapshot[k] = _number(info.get(key))
        return snapshot

    def observe_many(
        self, obs: Any, infos: Mapping[str, Any], envs: Sequence[Any], where: Iterable[int]
    ) -> NDArray[np.float64]:
        """The same for a vector environment, float64 [n, width]; NaN in rows not in ``where``.

        Args:
            obs: batched observation, n rows.
            infos: Gymnasium's batched infos: an array per key, present where ``_key`` is true.
            envs: the n environments, or None where they live in other processes.
            where: the copies to read.
        """
        count = len(envs)
        snapshots = np.full((count, self.width), np.nan)
        k = self._n_pack
        if k:
            self._read_pack(snapshots, obs, infos, envs, list(where))
        if self._n_observation:
            snapshots[:, k : k + self._n_observation] = flatten_many(obs, count)
            k += self._n_observation
        for key in self._info_keys:
            if key in infos:
                present = infos.get(f"_{key}")
                values = infos[key]
                for i in where:
                    if present is None or present[i]:
                        snapshots[i, k] = _number(values[i])
            k += 1
        return snapshots

    def _read_pack(
        self,
        snapshots: NDArray[np.float64],
        obs: Any,
        infos: Mapping[str, Any],
        envs: Sequence[Any],
        where: list[int],
    ) -> None:
        k = self._n_pack
        if self._deferred:
            snapshots[:, :k] = obs
        elif self._extract_batch is not None:
            snapshots[where, :k] = self._extract_batch(_element(obs, where))
        elif self.pack is not None:
            for i in where:
                snapshots[i, :k] = self.pack.extract(_element(obs, i), info_of(infos, i), envs[i])

    # -- rows -----------------------------------------------------------------------------------

    def fill(
        self,
        row: NDArray[np.float64],
        now: NDArray[np.float64],
        later: NDArray[np.float64] | None,
        *,
        action: Any,
        reward: Any,
        terminated: Any,
        truncated: Any,
        t: Any,
    ) -> None:
        """Complete the row [row_width] of a step, or the rows [n, row_width] of n copies, in place.

        Args:
            row: where to write; declared columns are left alone.
            now: snapshot [width] (or [n, width]) of obs_t.
            later: snapshot of obs_{t+1}, None when there is none (NaN then).
            action: a_t.
            reward: reward_{t+1}.
            terminated: whether the step ended the episode.
            truncated: whether the step met a time limit.
            t: step within the episode.
        """
        if self._has_now:
            row[..., self._now_to] = now[..., self._now_from]
        if self.needs_next:
            row[..., self._later_to] = np.nan if later is None else later[..., self._later_from]
        if self._deferred:
            self._keep_raw(row, now, action, (reward, terminated, truncated, t))
            return
        if self._clock is not None:
            row[..., self._clock] = t * self._tick
        if self._has_action and action is not None:
            one = row.ndim == 1
            measured = self._actions(
                flatten(action)[None] if one else flatten_many(action, len(row))
            )
            row[..., self._action_to] = measured[0] if one else measured
        if self._reward is not None:
            row[..., self._reward] = np.nan if reward is None else reward
        if self._terminated is not None:
            row[..., self._terminated] = terminated
        if self._truncated is not None:
            row[..., self._truncated] = truncated

    def _keep_raw(
        self,
        row: NDArray[np.float64],
        now: NDArray[np.float64],
        action: Any,
        came: tuple[Any, Any, Any, Any],
    ) -> None:
        reward, terminated, truncated, t = came
        if reward is None:
            reward = np.nan
        mark = self._mark
        if row.ndim == 1:
            if self._n_pack:
                row[self._raw] = now[: self._n_pack]
            row[self._raw_action] = np.nan if action is None else action
            row[mark] = 1.0
            row[mark + 1] = reward
            row[mark + 2] = terminated
            row[mark + 3] = truncated
            row[mark + 4] = t
            return
        row[:, self._raw] = now[:, : self._n_pack]
        if action is None:
            row[:, self._raw_action] = np.nan
        else:
            row[:, self._raw_action] = np.asarray(action, np.float64).reshape(len(row), -1)
        row[:, mark] = 1.0
        for column, value in enumerate((reward, terminated, truncated, t), start=mark + 1):
            row[:, column] = value

    def _actions(self, actions: NDArray[Any]) -> NDArray[np.float64]:
        """Action columns of actions [n, A]; NaN where there was none."""
        none = np.isnan(actions[:, 0].astype(np.float64))
        if self._measure_action is not None:
            known = np.where(none[:, None], 0, actions)
            given = known if self._continuous else known[:, 0].astype(np.int64)
            measured = np.array(self._measure_action(given), np.float64)
        else:
            measured = actions.astype(np.float64)
        measured[none] = np.nan
        return measured[:, self._action_from]

    def finish(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Metrics [n, M] of rows [n, row_width]: what was deferred is computed, the rest is kept.

        Rows without the mark (whole rows that the caller gave) are left as they are.
        """
        if not self._deferred:
            return rows
        metrics = np.ascontiguousarray(rows[:, : len(self.specs)])
        marked = rows[:, self._mark] == 1.0
        if marked.all():
            self._compute(metrics, rows)
        elif marked.any():
            part = metrics[marked]
            self._compute(part, rows[marked])
            metrics[marked] = part
        return metrics

    def _compute(self, metrics: NDArray[np.float64], rows: NDArray[np.float64]) -> None:
        obs, mark = rows[:, self._raw], self._mark
        if self._extract_batch is not None:
            metrics[:, self._pack_to] = np.asarray(self._extract_batch(obs))[:, self._pack_from]
        if self._n_pack:
            metrics[:, self._parts_to] = obs[:, self._parts_from]
        if self._has_action:
            metrics[:, self._action_to] = self._actions(rows[:, self._raw_action])
        for column, source in (
            (self._reward, mark + 1), (self._terminated, mark + 2), (self._truncated, mark + 3),
        ):  # fmt: skip
            if column is not None:
                metrics[:, column] = rows[:, source]
        if self._clock is not None:
            metrics[:, self._clock] = rows[:, mark + 4] * self._tick

    def whole(self, row: NDArray[np.float64]) -> NDArray[np.float64]:
        """A row [M] (or rows [n, M]) that the caller gave, as wide as rows are on their way."""
        if not self._deferred:
            return row
        out = np.zeros((*row.shape[:-1], self.row_width))
        out[..., : len(self.specs)] = row
        return out

    def fill_named(self, row: NDArray[np.float64], values: Mapping[str, Any]) -> None:
        """Write metrics by name: scalars into a row [M], n values into rows [n, M].

        Raises:
            UserError: when a name is not a metric of this set.
        """
        for name, value in values.items():
            column = self._columns.get(name)
            if column is None:
                raise UserError(
                    f"{name!r} is not a metric of this tap; it has {', '.join(self._columns)}"
                )
            row[..., column] = value


def _pairs(pairs: Sequence[tuple[int, int]]) -> tuple[Any, Any]:
    """Where to and where from, as slices when both are runs: several times faster to index."""
    to = [pair[0] for pair in pairs]
    source = [pair[1] for pair in pairs]
    if (
        to
        and to == list(range(to[0], to[0] + len(to)))
        and source == list(range(source[0], source[0] + len(source)))
    ):
        return slice(to[0], to[0] + len(to)), slice(source[0], source[0] + len(source))
    return np.array(to, np.intp), np.array(source, np.intp)


def _number(value: Any) -> float:
    """A scalar of an info dict as a number, NaN when it is none."""
    try:
        return float(np.asarray(value, np.float64).reshape(()))
    except (TypeError, ValueError):
        return float("nan")


def _element(obs: Any, i: int | list[int]) -> Any:
    if isinstance(obs, dict):
        return {key: _element(value, i) for key, value in obs.items()}
    if isinstance(obs, tuple):
        return tuple(_element(value, i) for value in obs)
    return obs[i]


def info_of(infos: Mapping[str, Any], i: int) -> dict[str, Any]:
    """One copy's info dict out of Gymnasium's batched infos."""
    out: dict[str, Any] = {}
    for key, values in infos.items():
        if key.startswith("_") and key[1:] in infos:
            continue
        present = infos.get(f"_{key}")
        if present is not None and not present[i]:
            continue
        if isinstance(values, dict):
            out[key] = info_of(values, i)
        elif hasattr(values, "__getitem__") and len(values) > i:
            out[key] = values[i]
    return out

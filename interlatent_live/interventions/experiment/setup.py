"""What a person writes to begin an experiment, and what is fixed before its test: the plan.

The setup (a TOML file) names policy, transcoder, metrics and the sizes of everything. The plan adds
what the selection seeds chose; it is what the audit holds, and nothing in it can change afterwards.
"""

from __future__ import annotations

import hashlib
import itertools
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import msgspec

from interlatent_live.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

LEAST_EPISODES: Final = 500
"""Paired held-out episodes of a test."""
LEAST_STATES: Final = 30
LEAST_BRANCHES: Final = 20
"""Of each state, where the test is made of branches."""
LEAST_CONTROLS: Final = 100
KINDS: Final = ("isotropic", "activation covariance", "other live features")
"""Controls of the treatment's norm."""
ANALYSIS: Final = (
    "Unit: the episode, or the cloned state of a group of branches. Effect: mean over units of the "
    "metric's paired difference to the untouched agent from the same start, t interval over units, "
    "one-sided p in the predicted direction. Supported when (1) that p, (2) the p of the paired "
    "difference to the best constant bias are both at most .05 after Holm over all tests of this "
    "plan, and (3) the effect lies above the 95th percentile of all controls of equal norm, all on "
    "the same starts. Reported beside it: the percentile's interval by resampling units, the "
    "feature at its off-moments, other doses, an untouched agent played twice, and every other "
    "metric."
)


class Unit(StrEnum):
    """What is played from one start."""

    EPISODES = "episodes"
    """A whole episode from a seed."""
    BRANCHES = "branches"
    """So many steps from a cloned MuJoCo state whose velocities were kicked a little."""


class When(StrEnum):
    """At which steps an arm acts."""

    ALWAYS = "always"
    ON = "on"
    """While the feature of the hypothesis is on."""
    OFF = "off"


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file; a misspelt key is refused."""


class Target(_Table, frozen=True, kw_only=True):
    """A metric that a feature is to move, and which way."""

    metric: str
    direction: int
    """1: up; −1: down."""

    def __post_init__(self) -> None:
        if self.direction not in {-1, 1}:
            raise UserError(f"direction of {self.metric!r} is {self.direction}; write 1 or -1")


class Seeds(_Table, frozen=True, kw_only=True):
    """First seeds of three ranges that must not overlap."""

    calibration: int = 1_000_000
    selection: int = 2_000_000
    held_out: int = 3_000_000


class Sizes(_Table, frozen=True, kw_only=True):
    """How many starts each stage plays; of branches, each state counts ``branches`` of them."""

    calibration: int = 20
    screening: int = 12
    selection: int = 80
    held_out: int = LEAST_EPISODES
    controls: int = 100
    """Of the held-out starts, those that also the controls play."""
    branches: int = LEAST_BRANCHES
    finalists: int = 10
    candidates: int = 24
    """Features that are screened: those that move the outputs most when they are on."""
    per_kind: int = 34
    """Controls of each kind."""


class Setup(_Table, frozen=True, kw_only=True):
    """One experiment.

    Raises:
        UserError: when a size is below what the definitions ask for, or ranges overlap.
    """

    name: str
    policy: str
    """A policy that travels with the package, a folder, a file, or module:function."""
    transcoder: str
    """Folder of a transcoder in the native format; a path, beside the file if it is relative."""
    environment: str = ""
    """Gymnasium id, when the policy does not say."""
    targets: tuple[Target, ...]
    unit: Unit = Unit.EPISODES
    horizon: int = 1000
    """Longest episode, or steps of a branch."""
    kick: float = 0.05
    """Standard deviation of what is added to each velocity of a branch, in the model's units."""
    doses: tuple[float, ...] = (-2.0, -1.0, 1.0, 2.0)
    """In units of the feature's median activation while on."""
    when: tuple[When, ...] = (When.ON, When.ALWAYS)
    biases: tuple[float, ...] = (-2.0, -1.0, -0.5, -0.25, 0.25, 0.5, 1.0, 2.0)
    """Constant biases that are tried on each output of the head, in its units."""
    bound: float = 3.0
    """Largest norm of an intervention, in root mean square norms of the hook point's output."""
    copies: int = 16
    seeds: Seeds = Seeds()
    sizes: Sizes = Sizes()
    quick: bool = False
    """A look at whether it works; smaller than the definitions ask for, and says so."""

    def __post_init__(self) -> None:
        sizes = self.sizes
        if not self.targets:
            raise UserError("an experiment needs a target: which metric shall move which way")
        if not self.quick:
            states = sizes.held_out // sizes.branches
            branches = self.unit is Unit.BRANCHES
            if branches and (states < LEAST_STATES or sizes.branches < LEAST_BRANCHES):
                raise UserError(
                    f"a test on branches needs {LEAST_STATES} states × {LEAST_BRANCHES} branches"
                )
            if not branches and sizes.held_out < LEAST_EPISODES:
                raise UserError(f"a test needs {LEAST_EPISODES} paired held-out episodes")
            if sizes.per_kind * len(KINDS) < LEAST_CONTROLS:
                raise UserError(f"a test needs {LEAST_CONTROLS} controls of equal norm")
        if sizes.controls > sizes.held_out:
            raise UserError("the controls play some of the held-out starts, so not more than those")
        ranges = sorted((first, first + 100_000) for first in self._firsts)
        if any(after[0] < before[1] for before, after in itertools.pairwise(ranges)):
            raise UserError("the ranges of seeds overlap: keep their first seeds 100,000 apart")

    @property
    def _firsts(self) -> tuple[int, ...]:
        return self.seeds.calibration, self.seeds.selection, self.seeds.held_out

    def digest(self) -> str:
        """Names this setup in files."""
        return _digest(self)


class Hypothesis(_Table, frozen=True, kw_only=True):
    """What is predicted, as the selection seeds chose it."""

    feature: int
    when: When
    dose: float
    """In median on-activations."""
    value: float
    """What is added to the feature."""
    norm: float
    """Of what that adds to the output, in each row."""
    metric: str
    direction: int
    selected_effect: float
    """Mean paired difference of the metric on the selection seeds."""
    tried: int
    """Arms that were compared to choose this one."""
    bias_output: int
    """The output of the head with the best constant bias for this metric, and the bias."""
    bias: float
    bias_selected_effect: float
    bias_tried: int

    @property
    def sentence(self) -> str:
        """In words."""
        way = "raises" if self.direction > 0 else "lowers"
        moment = {When.ON: " while it is on", When.ALWAYS: ""}.get(self.when, "")
        return f"adding {self.value:+.3g} to feature {self.feature}{moment} {way} {self.metric}"


class Plan(_Table, frozen=True, kw_only=True):
    """Everything that is fixed before the test."""

    setup: Setup
    policy_hash: str
    transcoder: str
    """Identity of the transcoder."""
    hook_point: str
    dictionary: str
    """Identity of the dictionary that the agent was given: the transcoder's features, then the
    controls' directions."""
    hypotheses: tuple[Hypothesis, ...]
    metrics: tuple[str, ...]
    analysis: str = ANALYSIS

    def digest(self) -> str:
        """SHA-256 over all of it."""
        return _digest(self)


def read_setup(path: Path) -> Setup:
    """Read the file; a transcoder's relative path is beside it.

    Raises:
        UserError: when it cannot be read, or says what no experiment can be.
    """
    try:
        setup = msgspec.toml.decode(path.read_bytes(), type=Setup)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise UserError(f"{path} describes no experiment: {error}") from error
    return setup


def _digest(value: Setup | Plan) -> str:
    return hashlib.sha256(msgspec.json.encode(value, order="sorted")).hexdigest()

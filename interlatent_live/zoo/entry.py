"""What the zoo knows of an agent: one TOML file each, read without torch.

An entry names its environment, policy and hook points and says with which numbers transcoders are
trained, claims proposed, the agent run live and the result judged. What a policy is and where it
came from stands in the policy's own folder, what its metrics mean in the metric pack; nothing is
said twice. The demo is two entries that need no extra and no preparation.

The numbers of ``cartpole`` and ``lunarlander`` were chosen so that 24,000 live steps of 8 copies
hold at least 40 episodes and at least 30 eligible features, most of which a rule of depth ≤ 3
describes. What matters most: disturbed starts and pushes (at rest a solved policy visits one
state), a dictionary of 2 × d features (at 4 × d more of them are thin slices that a rule catches
with low precision), and enough calibration episodes.
"""

from __future__ import annotations

from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Final

import msgspec

from interlatent_live.environments.disturbance import Disturbance
from interlatent_live.errors import CorruptFileError, UserError
from interlatent_live.transcoders.training.recipe import Recipe

ENTRIES: Final = Path(__file__).parent / "entries"
DATA: Final = Path(__file__).parent.parent / "data"


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of an entry's file; a misspelt key is refused."""


class Live(_Table, frozen=True, kw_only=True):
    """How the agent runs live."""

    control_hz: float
    """Steps per second of each copy; the simulated step may be another."""
    copies: int = 8
    """Environment copies side by side."""
    steps: int = 24_000
    """Steps of all copies together when no other number is asked for."""
    seed: int = 100_000
    """Copy i starts from ``seed + i``."""
    block_steps: int | None = None
    """Cuts endless episodes into the blocks that claims are resampled by."""


class FirstRound(_Table, frozen=True, kw_only=True):
    """A first transcoder, through which the policy then acts while the training set is collected.

    The transcoders proper so learn the states that acting through one leads to (DAgger).
    """

    episodes: int
    seed: int
    recipe: Recipe = Recipe()


class Training(_Table, frozen=True, kw_only=True):
    """Collecting and training."""

    episodes: int
    seed: int = 300_000
    n_features: int
    """F of each transcoder."""
    k: int
    """Mean number of features on per step."""
    seeds: int = 3
    """Training seeds; the one with the median error is kept."""
    recipe: Recipe = Recipe()
    first: FirstRound | None = None
    also_collect: tuple[str, ...] = ()
    """Modules whose activations are kept for probes; no transcoder is trained there."""


class Episodes(_Table, frozen=True, kw_only=True):
    """Episodes that something is measured or proposed on."""

    episodes: int
    seed: int


class Question(_Table, frozen=True, kw_only=True):
    """Something one would like to find in the policy, as a target that can be checked."""

    name: str
    """In words, such as "the ghosts are frightened"."""
    target: str
    """``METRIC < VALUE``, with or without ``within 1 s``, as probes take it."""


class Precursors(_Table, frozen=True, kw_only=True):
    """How it is looked for what announces a failure."""

    episodes: int
    seed: int
    disturbance: Disturbance
    """Stronger than live, so that enough episodes fail."""
    horizon_s: float
    """An alarm counts when it comes in so many seconds before the failure."""
    metrics: tuple[str, ...]
    """The obvious ones, each looked at from above and from below."""
    danger: str
    """Metric whose high peaks without a failure are near misses."""


class ZooEntry(_Table, frozen=True, kw_only=True):
    """One agent of the zoo."""

    name: str
    """Of the file; the entry's products are called the same."""
    title: str
    environment: str
    """Gymnasium id, with the module that registers it before a colon where one must."""
    policy: str
    """Name of a policy that travels with the package."""
    hook_points: tuple[str, ...]
    live: Live
    training: Training
    calibration: Episodes
    """What claims are proposed from."""
    evaluation: Episodes
    """Paired episodes that fidelity is measured on; claims are judged on as many more of them."""
    extra: str = ""
    """Of the distribution, where the environment needs one."""
    package: str = ""
    """Whose version decides what an episode is; empty: Gymnasium's."""
    demo: bool = False
    """Whether ``interlatent-live demo`` shows it for its environment."""
    disturbance: Disturbance = Disturbance()
    """Of training, calibration and live episodes; fidelity is measured without."""
    max_episode_steps: int | None = None
    """A time limit below the environment's own, so that a run holds enough episodes."""
    questions: tuple[Question, ...] = ()
    decode: tuple[str, ...] = ()
    """Metrics that are read off the layer by a line, beside the input and an untrained layer."""
    precursors: Precursors | None = None

    @property
    def environment_version(self) -> str:
        """The package that the environment comes from and its version here.

        Raises:
            UserError: when it is not installed.
        """
        package = self.package or "gymnasium"
        try:
            return f"{package} {metadata.version(package)}"
        except metadata.PackageNotFoundError as error:
            raise UserError(
                f"{self.name} needs {package}, which is not installed: install the extra "
                f"interlatent-live[{self.extra}]"
            ) from error

    @property
    def installed(self) -> bool:
        """Whether the environment's package is there."""
        try:
            return bool(self.environment_version)
        except UserError:
            return False

    @property
    def recording(self) -> Path:
        """The calibration recording that travels with the package; it need not exist."""
        return DATA / "recordings" / f"{self.name}.mcap"

    @property
    def shipped(self) -> dict[str, Path]:
        """Folders of the transcoders that travel with the package, by hook point."""
        folder = DATA / "transcoders" / self.name
        return {hook: folder / hook for hook in self.hook_points if (folder / hook).is_dir()}


@cache
def entries() -> tuple[ZooEntry, ...]:
    """Every entry, by name.

    Raises:
        CorruptFileError: when a file is no entry.
    """
    return tuple(read_entry(file) for file in sorted(ENTRIES.glob("*.toml")))


def read_entry(file: Path) -> ZooEntry:
    """Read one file.

    Raises:
        CorruptFileError: when it is no entry, or not named as its file is.
    """
    try:
        entry = msgspec.toml.decode(file.read_bytes(), type=ZooEntry)
    except (OSError, msgspec.DecodeError) as error:
        raise CorruptFileError(f"{file} is no entry of the zoo: {error}") from error
    if entry.name != file.stem:
        raise CorruptFileError(f"{file} calls its entry {entry.name!r}")
    return entry


def find_entry(name: str) -> ZooEntry:
    """The entry of that name, or the demo's of that environment.

    Raises:
        UserError: when there is none.
    """
    for entry in entries():
        if entry.name == name or (entry.demo and entry.environment == name):
            return entry
    known = ", ".join(entry.name for entry in entries())
    raise UserError(f"the zoo has no entry {name!r}; it has {known}")

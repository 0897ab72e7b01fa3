"""What a user may choose about a tap, checked once and frozen."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from interlatent_live.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from interlatent_live.agent.control import ControlOptions
    from interlatent_live.agent.shadow_values import ShadowOptions
    from interlatent_live.transcoders.native import LoadedTranscoder
    from interlatent_live.wire.keys import ClientKeys

DTYPES: Final = {"float32": "f4", "float16": "f2", "bfloat16": "bf2"}
"""Dtypes activations may travel in, and the wire's words for them."""

DEFAULT_ENDPOINT: Final = "tcp://127.0.0.1:28410"
"""Where the encoder service listens unless configured otherwise."""


class Autoreset(StrEnum):
    """How a vectorised environment begins the next episode of a copy (Gymnasium's three modes)."""

    NEXT_STEP = "next_step"
    """The call after the end resets and returns the first observation; it is not a step."""
    SAME_STEP = "same_step"
    """The call that ends the episode also resets: its observation is of the next episode."""
    DISABLED = "disabled"
    """The caller resets."""


class OnFull(StrEnum):
    """What happens to steps that cannot be sent now."""

    DROP_OLDEST = "drop_oldest"
    """The oldest are dropped and declared."""
    SPOOL = "spool"
    """They go through a bounded buffer on disk and are replayed in order."""
    BLOCK = "block"
    """The step call waits. For offline collection, never for an agent that must act in time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TapOptions:
    """Everything about a tap but the policy and its metrics.

    Attributes:
        agent: name of the agent, as operators know it.
        run_id: unique per run; made when empty.
        endpoint: the encoder's ZeroMQ address; None streams nowhere, for use within the process.
        environment: id of the environment, for people.
        control_hz: nominal steps per second, where there is one.
        actions: names of discrete actions.
        dtype: ``"float32"``, ``"float16"`` or ``"bfloat16"``: how activations travel.
        y_every: every how many steps the outputs y are sent, for the reconstruction error; 0 is
            never.
        step_every: every how many steps anything is sent; ends of episodes always are.
        envs: which agent copies to stream; None for all.
        shapes: widths (d_in, d_out) of hook points that the architecture does not tell.
        max_bytes: limit of the ring buffer in bytes.
        max_steps: limit of the ring buffer in steps of all copies together.
        max_age_s: waiting steps older than this are dropped and declared.
        on_full: what happens to steps that cannot be sent.
        spool: folder of the disk buffer under ``on_full="spool"``.
        spool_bytes: limit of the disk buffer.
        block_timeout_s: longest wait of one step under ``on_full="block"``.
        encode_at: ``"encoder"`` sends activations; ``"agent"`` encodes them here and sends
            features.
        transcoders: what encodes each hook point under ``encode_at="agent"``.
        keys: CURVE keys, needed for endpoints beyond this machine.
        shadow: measure beside the policy what its features do to the action
            (:class:`interlatent_live.agent.shadow.ShadowOptions`).
        control: let people hold, stop and steer the agent
            (:class:`interlatent_live.agent.control.ControlOptions`).
        learning: the policy learns while it is attached. Its stream then carries no policy hash
            that a transcoder could be bound to. Unless said, a change of weights is noticed, and
            from then on steps carry metrics and no activations: they would be another policy's.
        silent_after: after how many steps a hook point that never fired is reported.
        strict: raise errors of the tap instead of counting them (for tests).
    """

    agent: str = "agent"
    run_id: str = ""
    endpoint: str | None = DEFAULT_ENDPOINT
    environment: str = ""
    control_hz: float | None = None
    actions: tuple[str, ...] = ()
    dtype: str = "float32"
    y_every: int = 8
    step_every: int = 1
    envs: tuple[int, ...] | None = None
    shapes: Mapping[str, tuple[int, int]] | None = None
    max_bytes: int = 32 * 2**20
    max_steps: int = 8192
    max_age_s: float = 2.0
    on_full: OnFull | str = OnFull.DROP_OLDEST
    spool: Path | str | None = None
    spool_bytes: int = 256 * 2**20
    block_timeout_s: float = 60.0
    encode_at: str = "encoder"
    transcoders: Mapping[str, LoadedTranscoder | Path | str] | None = None
    keys: ClientKeys | None = None
    shadow: ShadowOptions | None = None
    control: ControlOptions | None = None
    learning: bool = False
    silent_after: int = 200
    strict: bool = False

    def __post_init__(self) -> None:
        """Check what can be checked without the policy.

        Raises:
            UserError: naming the option and what it may be.
        """
        if self.dtype not in DTYPES:
            raise UserError(f"dtype is {self.dtype!r}; it may be {', '.join(DTYPES)}")
        try:
            OnFull(self.on_full)
        except ValueError:
            raise UserError(f"on_full is {self.on_full!r}; it may be {_words(OnFull)}") from None
        if self.encode_at not in {"encoder", "agent"}:
            raise UserError(f"encode_at is {self.encode_at!r}; it may be encoder or agent")
        if self.encode_at == "agent" and not self.transcoders:
            raise UserError('encode_at="agent" needs transcoders={hook point: transcoder}')
        if self.on_full == OnFull.SPOOL and self.spool is None:
            raise UserError('on_full="spool" needs a folder: spool=...')
        for name, lowest in (("y_every", 0), ("step_every", 1), ("silent_after", 1)):
            if getattr(self, name) < lowest:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least {lowest}")
        if self.shadow is not None and self.learning:
            raise UserError("a shadow runs a copy of the policy, and a learning policy leaves it")
        if self.control is not None and self.learning and self.control.transcoders:
            raise UserError("a transcoder belongs to one policy, and a learning policy leaves it")


def _words(kind: type[StrEnum]) -> str:
    return ", ".join(member.value for member in kind)

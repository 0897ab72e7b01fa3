"""The engine's adapter for a Ray cluster.

Each service has an actor, placed by Ray where there is room for what the service asks for (CPUs,
GPUs); the process that the actor starts is the same command as on one machine, and rows travel over
our own sockets. Ray restarts nothing: an actor that is lost (its node died, or it has not answered
for ``silence_s``) is a process that ended, and the supervisor, which is the one of the local
adapter, decides when there is another try; Ray then chooses another node. A process that is out of
reach may go on for a while: the next one has a larger epoch
(:data:`~interlatent_live.engine.supervised.EPOCH_VARIABLE`), and consumers refuse the older one's
output.
"""

from __future__ import annotations

import logging
import queue
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from interlatent_live.engine import supervisor as machine
from interlatent_live.engine.port import OutputLine
from interlatent_live.engine.ray.host import ServiceHost
from interlatent_live.engine.supervised import SupervisedEngine
from interlatent_live.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from interlatent_live.engine.port import ServiceSpec

PLACED_WITHIN_S: Final = 60.0
"""Longest that a service waits for a node with room, before it is tried again."""
NEWS_EVERY_S: Final = 1.0
OWN_CLUSTER: Final = {"worker_niceness": 0}
"""Ray's 15 would put every service behind all else on the machine; their niceness is their own."""
LOST: Final = -9
"""Exit status of a process whose node is gone."""


@dataclass(slots=True, eq=False)
class _Place:
    """An actor, and the start that it was last told of."""

    name: str
    actor: Any
    attempt: int = 0
    lost: threading.Event = field(default_factory=threading.Event)


class RayEngine(SupervisedEngine):
    """Runs services as processes of a Ray cluster's nodes.

    Args:
        address: of the cluster, as ``ray.init`` takes it; ``None`` starts one on this machine, and
            uses the one that this program is connected to already.
        on_line: gets every line that a service writes.
        seed: fixes the jitter of restarts.
        silence_s: an actor that has not answered for so long is given up.

    Raises:
        UserError: when Ray is not installed, or no cluster answers at the address.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        on_line: Callable[[OutputLine], None] | None = None,
        seed: int | None = None,
        silence_s: float = 5.0,
    ) -> None:
        super().__init__(on_line, seed)
        self._ray, self._mine = connect(address)
        self._silence_s = silence_s
        self._places: dict[str, _Place] = {}
        self._news: queue.SimpleQueue[machine.Event | OutputLine | None] = queue.SimpleQueue()
        self._followers: list[threading.Thread] = []
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def start(self, spec: ServiceSpec) -> None:
        """See :meth:`interlatent_live.engine.port.Engine.start`; finding a node takes time too."""
        super().start(replace(spec, ready_within_s=spec.ready_within_s + PLACED_WITHIN_S))

    def room(self) -> int:
        """Nodes of the cluster that have a CPU to give, taken or not."""
        nodes = self._ray.nodes()
        return sum(1 for one in nodes if one["Alive"] and one["Resources"].get("CPU", 0) >= 1)

    def nodes(self) -> dict[str, str]:
        """Node of each service that runs, by name: the node's id."""
        return {
            name: self._ray.get(place.actor.node.remote(), timeout=self._silence_s)
            for name, place in dict(self._places).items()
            if not place.lost.is_set()
        }

    def close(self) -> None:
        """See :meth:`interlatent_live.engine.port.Engine.close`; a cluster of our own ends too."""
        super().close()
        if self._mine:
            self._mine = False
            self._ray.shutdown()

    # ------------------------------------------------------------------- the supervisor's hands

    def _spawn(self, spec: ServiceSpec, attempt: int) -> machine.Event | None:
        place = self._places.get(spec.name)
        if place is None or place.lost.is_set():
            place = self._places[spec.name] = self._place(spec)
        place.attempt = attempt
        asked = replace(spec, ready_within_s=spec.ready_within_s - PLACED_WITHIN_S)
        place.actor.spawn.remote(asked, attempt, self._next_epoch())
        return None

    def _place(self, spec: ServiceSpec) -> _Place:
        actor = (
            self._ray.remote(_Host)
            .options(
                num_cpus=spec.cpus,
                num_gpus=spec.gpus,
                max_restarts=0,
                max_concurrency=4,
                scheduling_strategy="SPREAD",
            )
            .remote()
        )
        place = _Place(spec.name, actor)
        follower = threading.Thread(
            target=self._follow, args=(place,), name=f"engine-{spec.name}", daemon=True
        )
        self._followers = [one for one in self._followers if one.is_alive()]
        self._followers.append(follower)
        follower.start()
        return place

    def _signal(self, instruction: machine.Signal) -> None:
        place = self._places[instruction.name]
        if not place.lost.is_set():
            place.actor.signal.remote(instruction.attempt, instruction.how)

    def _wake(self) -> None:
        self._news.put(None)

    def _join(self) -> None:
        self._thread.join()
        for follower in self._followers:
            follower.join()

    # ------------------------------------------------------------------------------ the threads

    def _run(self) -> None:
        try:
            while not self._finished:
                deadline = self._machine.deadline()
                wait = None if deadline is None else max(0.0, deadline - time.monotonic())
                with suppress(queue.Empty):
                    news = self._news.get(timeout=wait)
                    if isinstance(news, OutputLine):
                        self._tell(news)
                    elif news is not None:
                        self._handle(news)
                self._serve_requests()
                self._handle(machine.Tick())
        finally:
            for place in self._places.values():
                self._give_up(place)
            self._end()

    def _follow(self, place: _Place) -> None:
        """Hear what an actor has to say for as long as it answers."""
        after, patience = 0, PLACED_WITHIN_S
        try:
            while not place.lost.is_set():
                asked = place.actor.news.remote(after, NEWS_EVERY_S)
                found, ready = self._ray.get(asked, timeout=NEWS_EVERY_S + patience)
                patience = self._silence_s
                for one in found:
                    after = one.number
                    self._news.put(one.what)
                if ready and not found:
                    self._news.put(machine.Answered(place.name, place.attempt))
        except self._ray.exceptions.GetTimeoutError:
            why = "no node has room for it" if after == 0 else "its node does not answer"
        except self._ray.exceptions.RayError as error:
            why = f"its node is gone ({type(error).__name__})"
        else:
            return
        self._give_up(place)
        self._news.put(machine.Exited(place.name, place.attempt, LOST, why))

    def _give_up(self, place: _Place) -> None:
        """Forget an actor, and have Ray end it where it can be reached."""
        place.lost.set()
        with suppress(self._ray.exceptions.RayError, ValueError):
            self._ray.kill(place.actor)


class _Host(ServiceHost):
    """As an actor."""

    def node(self) -> str:
        """The id of the node that it is on."""
        import ray  # noqa: PLC0415 - inside an actor

        return str(ray.get_runtime_context().get_node_id())


def connect(address: str | None) -> tuple[Any, bool]:
    """Ray, connected; and whether the cluster was started here.

    Raises:
        UserError: when Ray is not installed, or no cluster answers at the address.
    """
    try:
        import ray  # noqa: PLC0415 - an extra, and half a second
    except ImportError as error:
        raise UserError(
            "the engine ray needs the extra: pip install 'interlatent-live[ray]'"
        ) from error
    if ray.is_initialized():
        return ray, False
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            # Of a cluster that is there already, they are for whoever started it to set.
            _system_config=dict(OWN_CLUSTER) if address is None else None,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(
            f"no Ray cluster can be used at {address or 'this machine'}: {error}"
        ) from error
    if threading.current_thread() is threading.main_thread():
        # Ray ends the process on SIGTERM in a way of its own; stopping in order is ours.
        signal.signal(signal.SIGTERM, before)
    return ray, address is None

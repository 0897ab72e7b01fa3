"""A shard: an encoder and a correlator of its own, on free ports, with a lease on some slots.

Started by an engine wherever there is room. It announces itself to the gateway, hears which runs
are its own, starts both services, which restore and replay those runs, and then claims its slots
for as long as it lives. A shard that hears that a later start of it has spoken ends at once.
"""

from __future__ import annotations

import os
import socket
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import msgspec

from interlatent_live.config import EndpointSettings, is_loopback, on_free_ports, split_address
from interlatent_live.engine.launch import service_specs
from interlatent_live.engine.leases import Claim, write_ownership
from interlatent_live.engine.local import LocalEngine
from interlatent_live.engine.port import Phase
from interlatent_live.engine.supervised import EPOCH_VARIABLE
from interlatent_live.errors import UserError
from interlatent_live.services.claiming import Claimant
from interlatent_live.services.network import Network
from interlatent_live.services.runtime import ServiceRuntime

if TYPE_CHECKING:
    from collections.abc import Callable

    from interlatent_live.config import Settings
    from interlatent_live.engine.port import ServiceSpec

OWN: Final = ("agents", "correlator", "encoder_feed", "correlator_feed", "correlator_queries")
"""Endpoints at which a shard's services listen, beside their health."""
TURN_S: Final = 0.1
ANSWER_WITHIN_S: Final = 30.0


def serve(settings: Settings, name: str, slots: str, on_ready: Callable[[], None]) -> None:
    """Run a shard until it is told to stop, or a later start of it has taken its place.

    Args:
        settings: those of the whole system: the gateway and the other services are found there.
        name: of the shard.
        slots: that it owns, as :func:`~interlatent_live.engine.slots.slots_text` writes them.
        on_ready: called once rows can come.

    Raises:
        UserError: when no gateway answers, or one of its services fails for good.
    """
    own = shard_settings(settings)
    claim = Claim(name, int(os.environ.get(EPOCH_VARIABLE) or time.time_ns()), slots)
    with (
        ServiceRuntime("shard", health="127.0.0.1:0") as runtime,
        Network(settings.security.keys) as network,
        tempfile.TemporaryDirectory(prefix="interlatent-shard-") as folder,
    ):
        claimant = Claimant(network, settings.endpoints.correlator, claim)
        try:
            _Shard(runtime, claimant, own, Path(folder) / "ownership.json").run(on_ready)
        finally:
            claimant.close()


class _Shard:
    def __init__(
        self, runtime: ServiceRuntime, claimant: Claimant, own: Settings, ownership: Path
    ) -> None:
        self._runtime = runtime
        self._claimant = claimant
        self._own = own
        self._ownership = ownership

    def run(self, on_ready: Callable[[], None]) -> None:
        patience = time.monotonic() + ANSWER_WITHIN_S
        while self._goes_on() and self._claimant.verdict is None:
            if time.monotonic() > patience:
                raise UserError(
                    f"no gateway answered within {ANSWER_WITHIN_S:g} s; is one running?"
                )
        if not self._goes_on():
            return
        with LocalEngine() as engine:
            for spec in shard_services(self._own, self._ownership):
                engine.start(spec)
            while self._goes_on():
                phases = {status.phase for status in engine.status()}
                for status in engine.status():
                    if status.phase is Phase.FAILED:
                        raise UserError(f"{status.name}: {status.reason}")
                if phases == {Phase.READY} and not self._claimant.claim.ready:
                    self._claim_slots()
                    self._runtime.ready(shard=self._claimant.claim.shard)
                    on_ready()
            if self._fenced:
                # Its successor has the runs; a last snapshot of this one would be of no use.
                self._runtime.log.warning("fenced", shard=self._claimant.claim.shard)
                engine.stop_all(at_once=True)

    @property
    def _fenced(self) -> bool:
        verdict = self._claimant.verdict
        return verdict is not None and verdict.fenced

    def _goes_on(self) -> bool:
        """One turn; whether there is to be another."""
        self._runtime.beat()
        before = self._claimant.verdict
        verdict = self._claimant.turn(TURN_S)
        if verdict is not None and verdict != before:
            write_ownership(self._ownership, self._claimant.claim.slots, verdict.strays)
        return not (self._runtime.stopping or self._fenced)

    def _claim_slots(self) -> None:
        endpoints = self._own.endpoints
        self._claimant.claim = msgspec.structs.replace(
            self._claimant.claim,
            agents=endpoints.agents,
            encoder_feed=endpoints.encoder_feed,
            correlator_feed=endpoints.correlator_feed,
            queries=endpoints.correlator_queries,
        )


def shard_settings(settings: Settings) -> Settings:
    """The same settings with a shard's own endpoints on free ports of this machine.

    They are on loopback where the gateway is, else on the address from which it is reached.
    """
    host = _own_address(settings.endpoints.correlator)
    free = dict(on_free_ports(settings).endpoints)
    changed = {name: free[name].replace("127.0.0.1", host) for name in OWN}
    changed |= {name: free[name] for name in ("encoder_health", "correlator_health")}
    endpoints = EndpointSettings(**{**dict(settings.endpoints), **changed})
    return settings.model_copy(update={"endpoints": endpoints})


def shard_services(own: Settings, ownership: Path) -> list[ServiceSpec]:
    """An encoder, and a correlator that takes the runs of the ownership file."""
    specs = {spec.name: spec for spec in service_specs(own)}
    correlator = specs["correlator"]
    command = (*correlator.command, "--ownership", str(ownership))
    # The shard's own niceness is theirs already.
    return [replace(specs["encoder"], nice=0), replace(correlator, command=command, nice=0)]


def _own_address(endpoint: str) -> str:
    """The address of this machine that another one reaches it at, if it is another one."""
    parts = urlsplit(endpoint)
    host, port = split_address(parts.netloc)
    if parts.scheme != "tcp" or is_loopback(host):
        return "127.0.0.1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port))  # sends nothing
        return str(probe.getsockname()[0])

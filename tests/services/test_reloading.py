"""A thread that looks at folders, and the whole system while versions change under it."""

import os
import signal
import socket
import threading
import time
import urllib.request
from itertools import groupby, pairwise

from interlatent_live.services.network import Network
from interlatent_live.services.receiving import RowReceiver
from interlatent_live.services.reloading import Reloader
from interlatent_live.transcoders.native import TENSORS_FILE, Provenance, save_transcoder
from interlatent_live.wire.receiver_link import Asked, Deliver
from interlatent_live.wire.security import Domain
from tests.support.system import HOOK, POLICY, System, Walker, transcoder

KEY = (POLICY, HOOK)


def save(folder, seed, version):
    one = transcoder(seed)
    provenance = Provenance(policy_hash=POLICY, hook_point=HOOK, version=version)
    path = save_transcoder(folder / f"v{version}", one, provenance)
    return one.identity, path


def until(condition, timeout_s=30.0):
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {timeout_s} s")


def test_looks_on_its_own_and_at_once_when_hung_up(tmp_path):
    old, _ = save(tmp_path, 1, 1)
    before = signal.getsignal(signal.SIGHUP)
    with Reloader([tmp_path], every_s=3600) as reloader:
        reloader.serving({KEY: old})
        new, _ = save(tmp_path, 2, 2)
        time.sleep(0.1)
        assert (list(reloader.scans()), reloader.looks) == ([], 0)
        os.kill(os.getpid(), signal.SIGHUP)
        (scan,) = until(lambda: list(reloader.scans()))
        assert scan.loaded[KEY].identity == new
    assert signal.getsignal(signal.SIGHUP) is before
    with Reloader([tmp_path], every_s=0.05) as reloader:
        until(lambda: reloader.looks > 3)
        assert list(reloader.scans()) == []


class Consumer:
    """A credited receiver of features beside the others: what came, in its order."""

    def __init__(self):
        self._network = Network(None)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.endpoint = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
        self._receiver = RowReceiver(self._network, self.endpoint, "test", Domain.SERVICES)
        self.rows: list[tuple[int, int, str]] = []
        """First row, number of rows, transcoder of every message."""
        self.greeted: list[tuple[int, str]] = []
        """Messages that had come before each hello, and the transcoder it announced."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._stop.set()
        self._thread.join()
        self._receiver.close()
        self._network.__exit__(None, None, None)

    def _run(self):
        while not self._stop.is_set():
            self._receiver.socket.poll(10)
            for received in [*self._receiver.receive(), *self._receiver.tick()]:
                self._take(received)

    def _take(self, received):
        match received:
            case Asked():
                self._receiver.accept(received)
                self.greeted.append((len(self.rows), (received.hello.transcoders or {})[HOOK]))
            case Deliver(boot_id=boot_id, message=message):
                batch = message.batch
                first = batch.steps.first_seq
                self.rows.append((first, len(batch.steps), batch.transcoders[HOOK]))
                self._receiver.processed(boot_id)


def health(system):
    base = f"http://{system.settings.endpoints.health('encoder')}"
    return urllib.request.urlopen(f"{base}/metrics").read().decode()


def test_versions_change_under_a_running_agent_without_a_lost_step(tmp_path):
    first, _ = save(tmp_path, 1, 1)
    with Consumer() as consumer, system_of(tmp_path, consumer) as system:
        with system.tap() as tap:
            walker = Walker(tap)
            walker.walk(500)
            identities = [first]
            for version in (2, 3):
                identity, _ = save(tmp_path, version, version)
                identities.append(identity)
                system.wait(lambda state: walker.walk(50) or serves(state, tap, identities[-1]))
                walker.walk(300)
            # A damaged version is refused; the one before goes on.
            _, path = save(tmp_path, 4, 4)
            tensors = path / TENSORS_FILE
            tensors.write_bytes(tensors.read_bytes()[:-8])
            system.wait(
                lambda state: (
                    walker.walk(50) or 'versions_total{result="refused"} 1.0' in health(system)
                )
            )
            walker.walk(300)
            run_id = tap.run_id
        link = tap.stats().link
        assert link.sent == link.acknowledged == walker.steps
        assert not link.lost
        status = system.wait(lambda state: state.agent(run_id).ended and state.agent(run_id))
        assert status.steps_encoded == status.steps_received == walker.steps
        assert (status.dropped_declared, status.gaps_undeclared) == ({}, 0)
        assert status.hook_points[0].transcoder == identities[-1]
        assert 'versions_total{result="adopted"} 2.0' in health(system)
        refusals = [line for line in system.lines if "transcoder refused" in line]
        assert len(refusals) == 1
        system.wait(lambda state: state.settled(run_id))
        until(lambda: consumer.rows and sum(consumer.rows[-1][:2]) == walker.steps)
        # Every row once and in order, by one version each, which never goes back.
        assert consumer.rows[0][0] == 0
        assert all(sum(one[:2]) == other[0] for one, other in pairwise(consumer.rows))
        assert [identity for identity, _ in groupby(row[2] for row in consumer.rows)] == identities
        # Hello was said again right before the first rows of each new version.
        begins = [
            next(i for i, row in enumerate(consumer.rows) if row[2] == one) for one in identities
        ]
        assert consumer.greeted == list(zip(begins, identities, strict=True))
        (profiles,) = [doc for (run, _), doc in system.state.profiles.items() if run == run_id]
        assert profiles.transcoder == identities[-1]
        assert profiles.processed_seq == walker.steps
        assert 0 < profiles.steps < walker.steps - 600
        assert all(one.address.endswith(identities[-1]) for one in profiles.features)


def serves(state, tap, identity):
    status = state.agent(tap.run_id)
    return status is not None and status.hook_points[0].transcoder == identity


def system_of(folder, consumer):
    return System(
        **{
            "encoder.transcoders": [str(folder)],
            "encoder.rescan_s": 1.0,
            "encoder.consumers": [consumer.endpoint],
        }
    )

"""A recorder as the encoder sees it: a consumer of features that writes what it receives."""

import threading
import time

from interlatent_live.recordings import RecordingWriter
from interlatent_live.services.network import Network
from interlatent_live.services.receiving import RowReceiver
from interlatent_live.wire.codec import encode
from interlatent_live.wire.receiver_link import Asked, Deliver, Ended
from interlatent_live.wire.security import Domain
from interlatent_live.wire.sockets import bound_endpoint


class Recorder:
    """Bound to a free port; ``path`` is the recording."""

    def __init__(self, path):
        self.path = path
        self.endpoint = ""
        self._stop = threading.Event()
        self._bound = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        assert self._bound.wait(10)
        return self

    def __exit__(self, *error):
        self._stop.set()
        self._thread.join()

    def _run(self):
        with Network(None) as network, RecordingWriter(self.path) as writer:
            receiver = RowReceiver(network, "tcp://127.0.0.1:*", "test", Domain.SERVICES)
            self.endpoint = bound_endpoint(receiver.socket)
            self._bound.set()
            while not self._stop.is_set():
                if not receiver.socket.poll(100):
                    writer.flush()
                for received in (*receiver.receive(), *receiver.tick()):
                    self._take(writer, receiver, received)
            receiver.close()

    @staticmethod
    def _take(writer, receiver, received):
        match received:
            case Asked(hello=hello):
                writer.write(encode(hello), time_ns=time.time_ns(), message=hello)
                receiver.accept(received)
            case Deliver(boot_id=boot_id, message=message):
                writer.write(encode(message), time_ns=time.time_ns(), message=message)
                receiver.processed(boot_id)
            case Ended(statement=statement):
                writer.write(encode(statement), time_ns=time.time_ns(), message=statement)

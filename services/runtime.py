"""What every service shell shares: a clean stop, health and metrics over HTTP, the parent's life.

A shell's loop looks like this, and nothing in it knows of signals or HTTP::

    with ServiceRuntime("encoder", health=..., budget=...) as runtime:
        poller.register(runtime.wakeup_fd, zmq.POLLIN)
        ...  # bind
        runtime.ready()
        while not runtime.stopping:
            runtime.beat()
            poller.poll(1000)
"""

from __future__ import annotations

import errno
import gc
import http.server
import json
import os
import select
import signal
import socket
import socketserver
import stat
import threading
import time
from contextlib import ExitStack, contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, Self

from prometheus_client import CollectorRegistry, Gauge, Info, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from interlatent_live import __version__
from interlatent_live.config import is_loopback, split_address
from interlatent_live.engine.local import PARENT_PIPE_VARIABLE
from interlatent_live.errors import UserError
from interlatent_live.logs import get_logger
from interlatent_live.services.heap import TRIM_EVERY_S, give_back_free_memory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType, TracebackType

    from interlatent_live.config import BufferBudget

STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
GRACE_AFTER_PARENT_S: Final = 5
"""Longest that a service takes to stop once nobody is left who would kill it."""
HTTP_TIMEOUT_S: Final = 5.0
MOST_REQUESTS: Final = 8
"""Requests served at once; more are turned away, so that health costs bounded memory."""
_METRIC_PREFIX: Final = "interlatent"


class ServiceRuntime:
    """One service process from start to stop; a context manager.

    Signals are taken only when it is entered on the main thread, so that a test can run a service
    on another one.

    Args:
        name: what the service calls itself in logs, metrics and health.
        health: ``HOST:PORT`` of /healthz and /metrics; port 0 takes a free one.
        budget: the service's buffers, whose sum is logged and shown at /metrics.
        live_within_s: how long the loop may go without :meth:`beat` before it counts as hung.
        setting: the setting that names ``health``, for the sentence when the port is taken.

    Attributes:
        registry: this process's own metrics; nothing is registered globally.
        stop_event: set when the service is to end, for loops that wait on an event.
        wakeup_fd: readable from then on, for loops that poll descriptors.

    Raises:
        UserError: on entry, when the health port can't be had.
    """

    def __init__(
        self,
        name: str,
        *,
        health: str,
        budget: BufferBudget | None = None,
        live_within_s: float = 10.0,
        setting: str = "",
    ) -> None:
        self.name = name
        self.log = get_logger(f"services.{name}")
        self.registry = CollectorRegistry()
        self.stop_event = threading.Event()
        self.stop_reason = ""
        self._health = health
        self._setting = setting or f"endpoints.{name}_health"
        self._budget = budget
        self._live_within_s = live_within_s
        self._started = time.monotonic()
        self._lock = threading.Lock()
        self._ready = False
        self._why = "starting"
        self._facts: dict[str, Any] = {}
        self._beat: float | None = None
        self._stop_began = 0.0
        self._resources = ExitStack()
        self.wakeup_fd = -1
        self._signal_fd = -1
        self._address = ("", 0)
        labels = {"service": name, "version": __version__}
        Info(f"{_METRIC_PREFIX}_service", "What this is.", registry=self.registry).info(labels)
        ProcessCollector(registry=self.registry)
        self._ready_gauge = Gauge(
            f"{_METRIC_PREFIX}_ready", "1 when it takes work.", registry=self.registry
        )

    # ------------------------------------------------------------------------------ for shells

    @property
    def stopping(self) -> bool:
        """Whether the service is to end."""
        return self.stop_event.is_set()

    @property
    def address(self) -> str:
        """``HOST:PORT`` that /healthz and /metrics really listen on."""
        host, port = self._address
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def ready(self, **facts: Any) -> None:
        """Say that everything is bound and loaded; ``facts`` are shown at /healthz and logged.

        In a process of its own what is loaded by now is taken out of garbage collection: it stays,
        and looking through all of it would stop the loop for a tenth of a second now and then.
        """
        if threading.current_thread() is threading.main_thread():
            gc.collect()
            gc.freeze()
        with self._lock:
            self._ready, self._why = True, ""
            self._facts.update(facts)
        self._ready_gauge.set(1)
        self.log.info("ready", health=f"http://{self.address}/healthz", **facts)

    def not_ready(self, why: str) -> None:
        """Say why work can't be taken for now."""
        with self._lock:
            self._ready, self._why = False, why
        self._ready_gauge.set(0)
        self.log.warning("not-ready", why=why)

    def beat(self) -> None:
        """Say that the loop still turns. Costs one clock read; call it on every turn."""
        self._beat = time.monotonic()

    def request_stop(self, reason: str) -> None:
        """Ask the service to end; from any thread, any number of times. The first reason counts."""
        with self._lock:
            if self.stop_event.is_set():
                return
            self.stop_reason, self._ready, self._why = reason, False, "stopping"
            self._stop_began = time.monotonic()
            self.stop_event.set()
            if self.wakeup_fd >= 0:
                os.eventfd_write(self.wakeup_fd, 1)
        self.log.info("stopping", reason=reason)

    # ------------------------------------------------------------------------------- lifetime

    def __enter__(self) -> Self:
        """Take the signals, watch the parent, serve health."""
        with ExitStack() as undo:
            self.wakeup_fd = _eventfd(undo)
            self._signal_fd = _eventfd(undo)
            end_fd = _eventfd(undo)
            server = self._serve()
            undo.callback(server.server_close)
            undo.callback(server.shutdown)
            threading.Thread(
                target=server.serve_forever, args=(0.2,), name="health", daemon=True
            ).start()
            watcher = threading.Thread(
                target=self._watch, args=(end_fd, _parent_pipe()), name="watch", daemon=True
            )
            watcher.start()
            undo.callback(watcher.join)
            undo.callback(os.eventfd_write, end_fd, 1)
            if threading.current_thread() is threading.main_thread():
                for number in STOP_SIGNALS:
                    undo.callback(signal.signal, number, signal.signal(number, self._on_signal))
            self._resources = undo.pop_all()
        self._show_buffers()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give everything back; an error of the shell goes on."""
        with self._lock:
            self.wakeup_fd = -1
        self._resources.close()
        gc.unfreeze()
        if error is None or isinstance(error, UserError):
            self.log.info("stopped", reason=self.stop_reason or "done")
        else:
            self.log.error("crashed", error=f"{type(error).__name__}: {error}")

    def _show_buffers(self) -> None:
        if self._budget is None:
            return
        limits = Gauge(
            f"{_METRIC_PREFIX}_buffer_limit_bytes",
            "Most that a kind of buffer may hold, all of them together.",
            ["buffer"],
            registry=self.registry,
        )
        for buffer in self._budget.buffers:
            limits.labels(buffer.name).set(buffer.total)
        self.log.info("buffers", total_bytes=self._budget.total, detail=str(self._budget))

    # -------------------------------------------------------------------------------- stopping

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.stopping and time.monotonic() - self._stop_began > 1:
            # Somebody at a terminal has no patience left.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        # Only a write: the handler may have interrupted code that holds any lock of this process.
        os.eventfd_write(self._signal_fd, number)

    def _watch(self, end_fd: int, parent: int) -> None:
        """Turn a signal, or the parent's death, into a request to stop; now and then tidy up."""
        poll = select.poll()
        poll.register(end_fd, select.POLLIN)
        poll.register(self._signal_fd, select.POLLIN)
        if parent >= 0:
            poll.register(parent, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll(TRIM_EVERY_S * 1000)}
            if not ready:
                give_back_free_memory()
            if end_fd in ready:
                return
            if self._signal_fd in ready:
                # Two signals between two polls add up; which they were does not matter then.
                number = os.eventfd_read(self._signal_fd)
                known = number in {one.value for one in STOP_SIGNALS}
                self.request_stop(signal.Signals(number).name if known else "signals")
            if parent in ready:
                poll.unregister(parent)
                # Nobody is left to kill us. The kernel does, even where a library holds the
                # interpreter's lock for ever.
                signal.alarm(GRACE_AFTER_PARENT_S)
                self.request_stop("the process that started this one is gone")

    # ---------------------------------------------------------------------------------- health

    def health(self) -> dict[str, Any]:
        """What /healthz says."""
        now = time.monotonic()
        since = None if self._beat is None else now - self._beat
        with self._lock:
            return {
                "service": self.name,
                "version": __version__,
                "pid": os.getpid(),
                "live": since is None or since <= self._live_within_s,
                "ready": self._ready,
                "why": self._why,
                "uptime_s": round(now - self._started, 3),
                "last_turn_s": None if since is None else round(since, 3),
                **self._facts,
            }

    def _serve(self) -> _Server:
        host, port = split_address(self._health)
        with explained(f"the {self.name}'s health page", self._health, self._setting):
            server = _Server((host, port), self)
        self._address = (host, server.server_address[1])
        return server


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    # Two processes on one port would each take half of the requests.
    allow_reuse_port = False

    def __init__(self, address: tuple[str, int], runtime: ServiceRuntime) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        self.runtime = runtime
        self._free = threading.BoundedSemaphore(MOST_REQUESTS)
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # Without HTTPServer's own, which asks the resolver for this machine's name.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no event; the default prints a traceback."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server
    timeout = HTTP_TIMEOUT_S
    server_version = "interlatent-live"
    sys_version = ""

    def do_GET(self) -> None:
        runtime = self.server.runtime
        if not self._asked_by_its_name():
            self._send(HTTPStatus.FORBIDDEN, "text/plain", b"unknown host\n")
            return
        health = runtime.health()
        match self.path.partition("?")[0]:
            case "/healthz":
                self._answer(health["live"] and health["ready"], health)
            case "/healthz/live":
                self._answer(health["live"], health)
            case "/metrics":
                body = generate_latest(runtime.registry)
                self._send(HTTPStatus.OK, CONTENT_TYPE_LATEST, body)
            case _:
                self._send(HTTPStatus.NOT_FOUND, "text/plain", b"/healthz, /metrics\n")

    def _asked_by_its_name(self) -> bool:
        """Whether the request is for this machine, as far as its Host header says.

        A page in a browser here could otherwise read these answers by having its own name resolve
        to 127.0.0.1. Opened to other machines, it is asked by names that it can't know.
        """
        if not is_loopback(str(self.server.server_address[0])):
            return True
        host = self.headers.get("Host", "")
        return is_loopback(split_address(host)[0] or host.strip("[]"))

    def _answer(self, good: bool, health: dict[str, Any]) -> None:  # noqa: FBT001 - private
        status = HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE
        self._send(status, "application/json", json.dumps(health, default=str).encode())

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Requests for health are not worth a line each."""


@contextmanager
def explained(what: str, address: str, setting: str) -> Iterator[None]:
    """Turn the failure to listen on ``address`` into a sentence that names the setting.

    Takes the system's errors and ZeroMQ's, which carry the same numbers.

    Raises:
        UserError: instead of an address in use, not permitted, or not of this machine.
    """
    try:
        yield
    except Exception as error:
        reasons = {
            errno.EADDRINUSE: "another program listens there already",
            errno.EACCES: "this user may not listen there",
            errno.EADDRNOTAVAIL: "this machine has no such address",
            errno.ENODEV: "this machine has no such address",
        }
        number = getattr(error, "errno", None)
        reason = reasons.get(number) if isinstance(number, int) else None
        if reason is None and not isinstance(error, OSError):
            raise
        raise UserError(
            f"{what} can't listen on {address}: {reason or error}; stop it or set {setting} to "
            "another address"
        ) from error


def _parent_pipe() -> int:
    """The engine's pipe, taken out of the environment so that no child of ours looks for it."""
    named = os.environ.pop(PARENT_PIPE_VARIABLE, "")
    try:
        fd = int(named)
        if not stat.S_ISFIFO(os.fstat(fd).st_mode):
            return -1
        os.set_inheritable(fd, False)
    except (ValueError, OSError):
        return -1
    return fd


def _eventfd(undo: ExitStack) -> int:
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    undo.callback(os.close, fd)
    return fd

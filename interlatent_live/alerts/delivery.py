"""Telling receivers of alerts, off the data path: a thread for each, bounded and patient.

A receiver that fails or hangs costs only itself: what waits for it is bounded (the oldest goes
first, counted), and it is tried again with growing pauses. Nothing is called that was not
configured; redirects are not followed and no proxy of the environment is used.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from interlatent_live.errors import UserError
from interlatent_live.logs import get_logger
from interlatent_live.statistics.rules import alertmanager_alerts, webhook_payload

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from interlatent_live.statistics.rules import Transition

SIGNATURE: Final = "X-Interlatent-Signature"
TIMESTAMP: Final = "X-Interlatent-Timestamp"
MOST_WAITING: Final = 256


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds: of one attempt, of the first and the longest pause, and until an alert is let go."""

    timeout_s: float = 5.0
    first_s: float = 1.0
    longest_s: float = 60.0
    give_up_s: float = 3600.0


@dataclass(frozen=True, slots=True)
class Receiver:
    """Somebody who is told. ``body`` makes what is posted from a transition."""

    name: str
    url: str
    body: Callable[[Transition], Any]
    key: bytes | None = None
    forgets: bool = False
    """Whether an alert must be posted again while it fires, or it counts as resolved."""


def alertmanager(url: str) -> Receiver:
    """An Alertmanager at a base address such as ``http://127.0.0.1:9093``."""
    address = url.rstrip("/") + "/api/v2/alerts"
    return Receiver("alertmanager", address, alertmanager_alerts, forgets=True)


def webhook(url: str, key_file: Path | None = None) -> Receiver:
    """Anybody who takes JSON; with a key file the body is signed.

    ``X-Interlatent-Signature`` is ``sha256=`` and the HMAC of ``TIMESTAMP.BODY`` in hex.

    Raises:
        UserError: when the key file cannot be read, is open to other users, or is too short.
    """
    key = None
    if key_file is not None:
        try:
            key = key_file.read_bytes().strip()
            mode = key_file.stat().st_mode
        except OSError as error:
            raise UserError(f"the webhook's key {key_file} can't be read: {error}") from error
        if mode & 0o077:
            raise UserError(
                f"the webhook's key {key_file} is open to other users; run `chmod 600 {key_file}`"
            )
        if len(key) < 16:
            raise UserError(f"the webhook's key {key_file} is shorter than 16 bytes")
    return Receiver("webhook", url, webhook_payload, key)


class Delivery:
    """The thread of one receiver."""

    def __init__(self, receiver: Receiver, patience: Patience | None = None) -> None:
        self.receiver = receiver
        self.delivered = self.failed = self.dropped = 0
        self._patience = patience or Patience()
        self._waiting: deque[tuple[bytes, float]] = deque()
        self._change = threading.Condition()
        self._stopping = False
        self._log = get_logger("alerts.delivery", receiver=receiver.name)
        self._thread = threading.Thread(target=self._run, name=receiver.name, daemon=True)
        self._thread.start()

    def tell(self, transition: Transition) -> None:
        """Take a transition; never waits."""
        body = json.dumps(self.receiver.body(transition), ensure_ascii=False).encode()
        with self._change:
            if len(self._waiting) >= MOST_WAITING:
                self._waiting.popleft()
                self.dropped += 1
            self._waiting.append((body, time.monotonic() + self._patience.give_up_s))
            self._change.notify()

    def counts(self) -> dict[str, int]:
        """Delivered, failed attempts, dropped, waiting."""
        with self._change:
            return {
                "delivered": self.delivered,
                "failed": self.failed,
                "dropped": self.dropped,
                "waiting": len(self._waiting),
            }

    def close(self, within_s: float = 1.0) -> None:
        """End the thread; what still waits is not told."""
        with self._change:
            self._stopping = True
            self._change.notify()
        self._thread.join(within_s)

    def _run(self) -> None:
        pause = self._patience.first_s
        while True:
            with self._change:
                self._change.wait_for(lambda: self._stopping or self._waiting)
                if self._stopping:
                    return
                body, until = self._waiting[0]
            why = self._post(body)
            with self._change:
                # Meanwhile the oldest may have been dropped for a newer one.
                own = bool(self._waiting) and self._waiting[0][0] is body
                if why is None:
                    self.delivered += 1
                    pause = self._patience.first_s
                elif time.monotonic() < until:
                    self.failed += 1
                    own = False
                else:
                    self.failed += 1
                    self.dropped += 1
                if own:
                    self._waiting.popleft()
                if why is not None:
                    self._log.warning("not delivered", why=why, again_in_s=pause)
                    self._change.wait_for(lambda: self._stopping, timeout=pause)
                    pause = min(2 * pause, self._patience.longest_s)

    def _post(self, body: bytes) -> str | None:
        """Post once; why it failed, or ``None``."""
        parts = urlsplit(self.receiver.url)
        headers = {"Content-Type": "application/json", "User-Agent": "interlatent-live"}
        if self.receiver.key is not None:
            stamp = str(int(time.time()))
            signed = hmac.new(self.receiver.key, stamp.encode() + b"." + body, hashlib.sha256)
            headers |= {TIMESTAMP: stamp, SIGNATURE: f"sha256={signed.hexdigest()}"}
        kind = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        connection = kind(parts.hostname or "", parts.port, timeout=self._patience.timeout_s)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        try:
            connection.request("POST", path, body, headers)
            status = connection.getresponse().status
        except (OSError, http.client.HTTPException) as error:
            return str(error) or type(error).__name__
        finally:
            connection.close()
        return None if 200 <= status < 300 else f"HTTP {status}"

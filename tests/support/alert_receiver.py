"""An HTTP server that takes alerts, and fails in the ways receivers fail."""

import json
import time

from tests.support.http_server import LocalServer, QuietHandler


class AlertReceiver(LocalServer):
    """``script``: statuses of the next answers, or ``"hang"``; 200 afterwards."""

    def __init__(self, *script):
        self.script = list(script)
        self.requests = []
        outer = self

        class Handler(QuietHandler):
            def posted(self, body):
                step = outer.script.pop(0) if outer.script else 200
                outer.requests.append((self.path, dict(self.headers), body, step))
                if step == "hang":
                    time.sleep(1.0)
                    return
                self.answer(step)

        super().__init__(Handler)

    def bodies(self, status=200):
        return [json.loads(body) for _, _, body, step in list(self.requests) if step == status]

"""An HTTP server that takes alerts, and fails in the ways receivers fail."""

import http.server
import json
import threading
import time


class AlertReceiver:
    """``script``: statuses of the next answers, or ``"hang"``; 200 afterwards."""

    def __init__(self, *script):
        self.script = list(script)
        self.requests = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                step = outer.script.pop(0) if outer.script else 200
                outer.requests.append((self.path, dict(self.headers), body, step))
                if step == "hang":
                    time.sleep(1.0)
                    return
                self.send_response(step)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *words):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self._thread = threading.Thread(target=self.server.serve_forever, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()

    def bodies(self, status=200):
        return [json.loads(body) for _, _, body, step in list(self.requests) if step == status]

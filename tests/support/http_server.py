"""An HTTP server on loopback, for tests that play who receives something."""

import http.server
import threading


class QuietHandler(http.server.BaseHTTPRequestHandler):
    """A subclass says in ``posted(body)`` what it does with a request."""

    def do_POST(self):
        self.posted(self.rfile.read(int(self.headers["Content-Length"])))

    def posted(self, body):
        raise NotImplementedError

    def answer(self, status, said=b""):
        self.send_response(status)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *words):
        pass


class LocalServer:
    """``path`` ends the address that ``url`` tells."""

    def __init__(self, handler, path=""):
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}{path}"
        self._thread = threading.Thread(target=self.server.serve_forever, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()

"""A service that answers /ready, says so in its log, and ends when it is asked to."""

import http.server
import json
import os
import signal
import sys

IS_READY = os.environ.get("SYNOD_FAKE_READY", "yes") == "yes"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if IS_READY else 503)
        self.end_headers()
        self.wfile.write(b"ready" if IS_READY else b"waiting for a peer")

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["SYNOD_HTTP_PORT"])), Handler)
    print(json.dumps({"level": "info", "service": os.environ["SYNOD_SERVICE"], "event": "listening"}), flush=True)
    print("a plain line", file=sys.stderr, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()

"""The health check of a container: asks the service beside it, and exits 0 if it is ready.

Run as ``python -m servicekit.healthcheck``, with SYNOD_HTTP_PORT as the service has it; an image runs the file itself,
without the packages of the interpreter. An engine starts it every few seconds in every container, so it imports next to
nothing: with http.client and the usual start of Python it took four times the CPU.
"""

import os
import socket
import sys

TIMEOUT_S = 3.0
HEALTHY, UNHEALTHY = 0, 1


def check(port: int) -> int:
    """Asks GET /ready on loopback; what the service answers is printed, so that the engine shows it."""
    try:
        with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as connection:
            # By HTTP/1.0 the end of the connection is the end of the answer.
            connection.sendall(b"GET /ready HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")
            head, _, body = _read_to_end(connection).partition(b"\r\n\r\n")
    except OSError as error:
        sys.stdout.write(f"port {port}: {error}\n")
        return UNHEALTHY
    sys.stdout.write(body.decode(errors="replace") + "\n")
    return HEALTHY if head.split()[1:2] == [b"200"] else UNHEALTHY


def _read_to_end(connection: socket.socket) -> bytes:
    answer = b""
    while piece := connection.recv(4096):
        answer += piece
    return answer


if __name__ == "__main__":
    sys.exit(check(int(os.environ["SYNOD_HTTP_PORT"])))

"""The health check of a container: asks the service beside it, and exits 0 if it is ready.

Run as ``python -m servicekit.healthcheck``, with SYNOD_HTTP_PORT as the service has it. Imports nothing but the
standard library: an engine starts it every few seconds.
"""

import http.client
import os
import sys

TIMEOUT_S = 2.0
HEALTHY, UNHEALTHY = 0, 1


def check(port: int) -> int:
    """Asks GET /ready on loopback; what the service answers is printed, so that the engine shows it."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/ready")
        answer = connection.getresponse()
        sys.stdout.write(answer.read().decode(errors="replace") + "\n")
    except (OSError, http.client.HTTPException) as error:
        sys.stdout.write(f"port {port}: {error}\n")
        return UNHEALTHY
    finally:
        connection.close()
    return HEALTHY if answer.status == http.client.OK else UNHEALTHY


if __name__ == "__main__":
    sys.exit(check(int(os.environ["SYNOD_HTTP_PORT"])))

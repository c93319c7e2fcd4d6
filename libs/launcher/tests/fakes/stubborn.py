"""A service that ignores SIGTERM and has a child that does too; the child's id is in the file `child`."""

import signal
import subprocess
import sys
from pathlib import Path

import steady

CHILD = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.pause()"

if __name__ == "__main__":
    child = subprocess.Popen((sys.executable, "-c", CHILD))
    Path("child").write_text(f"{child.pid}.")
    handler, signal.signal = signal.signal, lambda *_: None  # type: ignore[assignment]
    handler(signal.SIGTERM, signal.SIG_IGN)
    steady.main()

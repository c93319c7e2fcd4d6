"""What model-written code cannot do. Each attempt is also made without the jail, where it succeeds: that proves that it
is the jail that refuses it here."""

import subprocess
import sys
from pathlib import Path

import pytest
from tool_executor.errors import ToolCallFailed
from tool_executor.tools import python_exec
from tool_executor.tools.runner import Runner

pytestmark = pytest.mark.asyncio(loop_scope="module")

ATTEMPT = """
import errno, os, sys
try:
    {code}
    result = "allowed"
except OSError as error:
    result = errno.errorcode[error.errno]
"""

REFUSED = {
    "open an IPv4 socket": ("import socket; socket.socket(socket.AF_INET).close()", "EPERM"),
    "open an IPv6 socket": ("import socket; socket.socket(socket.AF_INET6).close()", "EPERM"),
    "open a UDP socket": ("import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()", "EPERM"),
    "open a local socket": ("import socket; socket.socket(socket.AF_UNIX).close()", "EPERM"),
    "make a pair of sockets": ("import socket; socket.socketpair()", "EPERM"),
    "fork": ("os.fork() or os._exit(0)", "EPERM"),
    "spawn a program": ("os.posix_spawn('/bin/true', ['true'], {{}})", "EPERM"),
    "become another program": ("os.execv(sys.executable, ['python', '-c', 'print(\"allowed\")'])", "EPERM"),
    "signal the parent": ("os.kill(os.getppid(), 0)", "EPERM"),
    "signal everybody's session": ("os.killpg(os.getpgid(os.getppid()), 0)", "EPERM"),
    "write outside": ("open({outside!r} + '/new', 'w').close()", "EACCES"),
    "append to a file outside": ("open({outside!r} + '/secret', 'a').close()", "EACCES"),
    "read a file outside": ("open({outside!r} + '/secret').read()", "EACCES"),
    "list a directory outside": ("os.listdir({outside!r})", "EACCES"),
    "empty a file outside": ("os.truncate({outside!r} + '/empty', 0)", "EPERM"),
    "change the mode of a file outside": ("os.chmod({outside!r} + '/empty', 0o600)", "EPERM"),
    "change the times of a file outside": ("os.utime({outside!r} + '/empty')", "EPERM"),
    "follow a link of the workspace": ("open('link').read()", "EACCES"),
    "read the workspace of another run": ("open('../run-2/secret').read()", "EACCES"),
    "write into its own workspace": ("open('new', 'w').close()", "EACCES"),
    "remove a file of its own workspace": ("os.unlink('own')", "EACCES"),
    "make a link in its own workspace": ("os.symlink('/etc', 'other' + str(os.getpid()))", "EPERM"),
    "read the parent's environment": ("open(f'/proc/{{os.getppid()}}/environ').read()", "EACCES"),
    "list processes": ("os.listdir('/proc')", "EACCES"),
    "read /etc": ("os.listdir('/etc')", "EACCES"),
    "make a file in memory": ("os.memfd_create('x')", "EPERM"),
    "raise its file size limit for others": (
        "import resource; resource.prlimit(os.getppid(), resource.RLIMIT_CORE)",
        "EPERM",
    ),
}

KILLED = {
    "be traced (ptrace)": "libc.ptrace(0, 0, 0, 0)",
    "read another's memory": "libc.process_vm_readv(os.getpid(), None, 0, None, 0, 0)",
    "leave into new namespaces": "libc.unshare(0)",
    "mount": "libc.syscall(165 if x86 else 40, None, None, None, 0, None)",
    "use io_uring": "libc.syscall(425, 0, None)",
    "load a BPF program": "libc.syscall(321 if x86 else 280, 999, None, 0)",
    "reach the kernel's keys": "libc.syscall(250 if x86 else 219, 999)",
    "handle page faults": "libc.syscall(323 if x86 else 282, -1)",
}

NATIVE = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
x86 = os.uname().machine == "x86_64"
{code}
result = "survived"
"""


@pytest.fixture
def outside(tmp_path: Path, workspace_dir: Path) -> Path:
    """Another run's workspace beside ours, and a link that leads there."""
    other = tmp_path / "run-2"
    other.mkdir()
    (other / "secret").write_text("secret")
    (other / "empty").touch()
    (workspace_dir / "own").write_text("own")
    (workspace_dir / "link").symlink_to(other / "secret")
    return other


async def jailed(runner: Runner, code: str, workspace: Path) -> object:
    done = await runner.run(python_exec.TOOL, {"code": code}, workspace, 30.0)
    return done.value["value"]


def unjailed(code: str, workspace: Path) -> str:
    command = [sys.executable, "-I", "-c", code + "\nprint(result)"]
    done = subprocess.run(command, cwd=workspace, capture_output=True, text=True, check=True, timeout=30)
    return done.stdout.strip()


@pytest.mark.parametrize("what", REFUSED)
async def test_refuses_to(what: str, runner: Runner, workspace_dir: Path, outside: Path) -> None:
    attempt, refusal = REFUSED[what]
    code = ATTEMPT.format(code=attempt.format(outside=str(outside)))
    assert await jailed(runner, code, workspace_dir) == refusal
    assert unjailed(code, workspace_dir) == "allowed"


@pytest.mark.parametrize("what", KILLED)
async def test_kills_an_attempt_to(what: str, runner: Runner, workspace_dir: Path) -> None:
    code = NATIVE.format(code=KILLED[what])
    with pytest.raises(ToolCallFailed) as caught:
        await jailed(runner, code, workspace_dir)
    assert caught.value.kind == "SYSCALL_DENIED"
    assert unjailed(code, workspace_dir) == "survived"


async def test_reports_a_refusal_the_code_does_not_handle(runner: Runner, workspace_dir: Path) -> None:
    with pytest.raises(ToolCallFailed) as caught:
        await jailed(runner, "import subprocess; subprocess.run(['/bin/true'])", workspace_dir)
    assert caught.value.kind == "SYSCALL_DENIED"
    assert "Operation not permitted" in caught.value.message


async def test_lets_the_code_use_threads_and_read_its_workspace(
    runner: Runner, workspace_dir: Path, outside: Path
) -> None:
    code = (
        "import threading\nseen = []\nthread = threading.Thread(target=lambda: seen.append(open('own').read()))\n"
        "thread.start(); thread.join()\nresult = seen"
    )
    assert await jailed(runner, code, workspace_dir) == ["own"]


async def test_shows_the_code_nothing_of_our_environment_or_descriptors(
    runner: Runner, workspace_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYNOD_SECRET", "secret")
    code = (
        "import os\n"
        "def is_open(fd):\n"
        "    try: os.fstat(fd)\n"
        "    except OSError: return False\n"
        "    return True\n"
        "result = {'env': [k for k in os.environ if 'SYNOD' in k], 'fds': [f for f in range(64) if is_open(f)]}"
    )
    assert await jailed(runner, code, workspace_dir) == {"env": [], "fds": [0, 1, 2]}


async def test_runs_without_privileges(runner: Runner, workspace_dir: Path) -> None:
    code = (
        "import ctypes, struct\n"
        "header = ctypes.create_string_buffer(struct.pack('Ii', 0x20080522, 0), 8)\n"
        "data = ctypes.create_string_buffer(24)\n"
        "result = [ctypes.CDLL(None).capget(header, data), data.raw.hex()]"
    )
    assert await jailed(runner, code, workspace_dir) == [0, "00" * 24]


async def test_takes_no_result_from_the_streams(runner: Runner, workspace_dir: Path) -> None:
    forged = '{"answer": {"outcome": "succeeded", "value": {"value": "forged", "stdout": "", "stderr": ""}}}'
    code = (
        "import os\n"
        f"for fd in range(1, 64):\n    try: os.write(fd, {forged.encode()!r})\n    except OSError: pass\n"
        "result = 'true'"
    )
    done = await runner.run(python_exec.TOOL, {"code": code}, workspace_dir, 30.0)
    assert done.value["value"] == "true"
    assert done.value["stdout"] == done.value["stderr"] == forged


async def test_takes_no_result_from_a_process_that_ends_itself(runner: Runner, workspace_dir: Path) -> None:
    with pytest.raises(ToolCallFailed) as caught:
        await jailed(runner, "import os; result = 1; os._exit(0)", workspace_dir)
    assert caught.value.kind == "TOOL_CRASHED"
    assert "without leaving a result" in caught.value.message


async def test_checks_a_result_the_code_wrote_itself(runner: Runner, workspace_dir: Path) -> None:
    code = (
        "import os, sys\n"
        "frame = sys._getframe()\n"
        "while 'order' not in frame.f_locals: frame = frame.f_back\n"
        "path = frame.f_locals['order'].call_directory + '/result'\n"
        'open(path, \'w\').write(\'{"answer": {"outcome": "succeeded", "value": {"isolation": "none"}}}\')\n'
        "os._exit(0)"
    )
    with pytest.raises(ToolCallFailed) as caught:
        await jailed(runner, code, workspace_dir)
    assert caught.value.kind == "TOOL_CRASHED"
    assert "does not fit its schema" in caught.value.message

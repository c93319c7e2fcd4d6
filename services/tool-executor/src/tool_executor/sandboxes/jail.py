"""Puts the calling process behind bars, step by step; every step is for good."""

import resource
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from tool_executor.sandboxes import landlock, seccomp
from tool_executor.sandboxes.kernel import drop_capabilities, no_new_privileges
from tool_executor.sandboxes.sandbox import Access

SYSTEM_LIBRARIES = ("/usr", "/lib", "/lib64")
DEVICES = (("/dev/null", landlock.RIGHTS_OF_A_FILE), ("/dev/urandom", landlock.READ_FILE))
RIGHTS = {Access.NONE: 0, Access.READ: landlock.READ, Access.WRITE: landlock.WRITE}


@dataclass(frozen=True, slots=True)
class Bounds:
    """Resource limits the kernel enforces on one process."""

    cpu_s: int
    memory_bytes: int
    file_bytes: int
    descriptors: int


def limit_resources(bounds: Bounds) -> None:
    """The hard CPU limit is a second later than the soft one, which ends the process with a signal of its own name."""
    resource.setrlimit(resource.RLIMIT_CPU, (bounds.cpu_s, bounds.cpu_s + 1))
    resource.setrlimit(resource.RLIMIT_AS, (bounds.memory_bytes, bounds.memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (bounds.file_bytes, bounds.file_bytes))
    resource.setrlimit(resource.RLIMIT_NOFILE, (bounds.descriptors, bounds.descriptors))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def confine(result: Path, workspace: Path | None, access: Access, readable: tuple[str, ...] = ()) -> None:
    """L2: no privileges, files only by the rules below, system calls only by the filter. OSError if the kernel refuses.

    The one file outside the workspace that may be written is `result`, and it exists already: a jailed process makes
    no files of its own, so it cannot fill the disk with more than the size limit of one. `readable` are further paths
    whose files may be read, but not listed.
    """
    drop_capabilities()
    no_new_privileges()
    extra = tuple((Path(path), landlock.READ_FILE) for path in readable)
    landlock.restrict((*file_rules(result, workspace, access), *extra))
    seccomp.install()


def file_rules(result: Path, workspace: Path | None, access: Access) -> tuple[tuple[Path, int], ...]:
    readable = [(Path(path), landlock.READ) for path in (*SYSTEM_LIBRARIES, *python_directories())]
    devices = [(Path(path), rights) for path, rights in DEVICES]
    own = [] if workspace is None or access is Access.NONE else [(workspace, RIGHTS[access])]
    return (*readable, *devices, *own, (result, landlock.REWRITE))


def python_directories() -> tuple[str, ...]:
    """Where modules come from: the standard library, installed packages and our own source."""
    installed = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), sysconfig.get_config_var("LIBDIR"))
    return tuple(dict.fromkeys(path for path in (*installed, *sys.path) if path and Path(path).is_absolute()))

"""File access of the jail through Landlock (Linux 5.13 and later), without a library.

Source: Linux Documentation/userspace-api/landlock.rst. Landlock judges opening, making and removing files; it does not
judge stat(), chmod(), chown() or utimes(): seccomp refuses the latter three.
"""

import ctypes
import os
import struct
from pathlib import Path

from tool_executor.sandboxes.kernel import LIBC, checked, no_new_privileges

# The three calls have one number on every architecture.
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
GET_VERSION = 1
RULE_PATH_BENEATH = 1

WRITE_FILE, READ_FILE, READ_DIRECTORY = 1 << 1, 1 << 2, 1 << 3
REMOVE_DIRECTORY, REMOVE_FILE, MAKE_DIRECTORY, MAKE_FILE = 1 << 4, 1 << 5, 1 << 7, 1 << 8
REFER, TRUNCATE = 1 << 13, 1 << 14

FIRST_FILE_RIGHTS = (1 << 13) - 1  # ABI 1
SCOPE_ABSTRACT_SOCKET_AND_SIGNAL = 3
TCP_BIND_AND_CONNECT = 3

READ = READ_FILE | READ_DIRECTORY
WRITE = READ | WRITE_FILE | REMOVE_DIRECTORY | REMOVE_FILE | MAKE_DIRECTORY | MAKE_FILE | REFER | TRUNCATE
REWRITE = WRITE_FILE | TRUNCATE
RIGHTS_OF_A_FILE = READ_FILE | WRITE_FILE | TRUNCATE


def abi() -> int:
    """The version of Landlock this kernel speaks; OSError (ENOSYS, EOPNOTSUPP, EPERM) if it is not to be had."""
    return _syscall(CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(GET_VERSION))


def restrict(rules: tuple[tuple[Path, int], ...]) -> None:
    """Forbid the calling process every file right but these, and signals and TCP as far as the kernel's ABI goes.

    A rule is a path and the rights on it and all beneath; a path that does not exist is passed over.
    """
    version = abi()
    handled = file_rights(version)
    attributes = ruleset(version)
    descriptor = _syscall(CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0))
    try:
        for path, rights in rules:
            _allow(descriptor, path, rights & handled)
        no_new_privileges()
        _syscall(RESTRICT_SELF, ctypes.c_int(descriptor), ctypes.c_uint32(0))
    finally:
        os.close(descriptor)


def file_rights(version: int) -> int:
    """All file rights that this ABI can refuse: refer (2), truncate (3), device ioctl (5) came after the first."""
    return (
        FIRST_FILE_RIGHTS
        | (REFER if version >= 2 else 0)
        | (TRUNCATE if version >= 3 else 0)
        | (1 << 15 if version >= 5 else 0)
    )


def ruleset(version: int) -> bytes:
    """struct landlock_ruleset_attr in the size this ABI knows: TCP came with 4, scopes with 6."""
    if version >= 6:
        return struct.pack("QQQ", file_rights(version), TCP_BIND_AND_CONNECT, SCOPE_ABSTRACT_SOCKET_AND_SIGNAL)
    if version >= 4:
        return struct.pack("QQ", file_rights(version), TCP_BIND_AND_CONNECT)
    return struct.pack("Q", file_rights(version))


def _allow(ruleset_descriptor: int, path: Path, rights: int) -> None:
    if not path.exists():
        return
    parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        granted = rights if path.is_dir() else rights & RIGHTS_OF_A_FILE
        rule = struct.pack("=Qi", granted, parent)
        _syscall(ADD_RULE, ctypes.c_int(ruleset_descriptor), ctypes.c_int(RULE_PATH_BENEATH), rule, ctypes.c_uint32(0))
    finally:
        os.close(parent)


def _syscall(number: int, *arguments: object) -> int:
    return checked(LIBC.syscall(ctypes.c_long(number), *arguments))

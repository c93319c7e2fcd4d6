"""What can go wrong while the system is started or stopped on one machine.

LauncherError
├── BinaryMissing       a server program is not installed, or does not run on this machine
├── PortInUse           something else listens on an address that is needed
├── DiskFull            less space is free than the servers need
├── DataUnusable        the data directory cannot be written, is not ours, or is of another version
├── DataLocked          another launcher holds the data directory
├── KeyLost             a key that signed already is gone: put it back, or say that it is a former one
├── StartFailed         a program ended, or was not ready, before its deadline
└── SettingInvalid      an option has a value that cannot work

Each says which field has which value, what is wrong with it, and what to do about it.
"""


class LauncherError(Exception):
    """A start or stop that cannot go on; `field`, `value`, `problem` and `remedy` are for people."""

    def __init__(self, field: str, value: object, problem: str, remedy: str) -> None:
        super().__init__(f"{field} = {value}: {problem}. {remedy}")
        self.field = field
        self.value = str(value)
        self.problem = problem
        self.remedy = remedy


class BinaryMissing(LauncherError):
    """A server program is not installed, or does not run on this machine."""


class PortInUse(LauncherError):
    """Something else listens on an address that is needed."""


class DiskFull(LauncherError):
    """Less space is free than the servers need."""


class DataUnusable(LauncherError):
    """The data directory cannot be written, is not ours, or is of another version."""


class DataLocked(LauncherError):
    """Another launcher holds the data directory."""


class KeyLost(LauncherError):
    """A key that signed already is gone: a new one in its place would make what it signed look forged."""


class StartFailed(LauncherError):
    """A program ended, or was not ready, before its deadline."""


class SettingInvalid(LauncherError):
    """An option has a value that cannot work."""

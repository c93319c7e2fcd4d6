import struct

from tool_executor.sandboxes import landlock


def test_asks_only_for_rights_the_kernel_knows() -> None:
    assert landlock.file_rights(1) == (1 << 13) - 1
    assert landlock.file_rights(2) == landlock.file_rights(1) | landlock.REFER
    assert landlock.file_rights(3) == landlock.file_rights(2) | landlock.TRUNCATE
    assert landlock.file_rights(5) == (1 << 16) - 1
    assert landlock.file_rights(7) == landlock.file_rights(5)


def test_describes_the_ruleset_in_the_size_of_the_kernels_abi() -> None:
    assert [len(landlock.ruleset(version)) for version in (1, 2, 3, 4, 5, 6, 7)] == [8, 8, 8, 16, 16, 24, 24]


def test_closes_tcp_and_foreign_signals_as_soon_as_the_kernel_can() -> None:
    assert struct.unpack("QQQ", landlock.ruleset(6))[1:] == (
        landlock.TCP_BIND_AND_CONNECT,
        landlock.SCOPE_ABSTRACT_SOCKET_AND_SIGNAL,
    )

"""The filter, judged by a small BPF machine, so that both architectures are tested on either."""

import os

import pytest
from tool_executor.sandboxes import seccomp
from tool_executor.sandboxes.seccomp import ALLOW, KILL_PROCESS, NOT_IMPLEMENTED, REFUSE, Architecture
from tool_executor.sandboxes.syscalls import ABSENT, ALLOWED, CONDITIONAL, FATAL, Syscall

PID = 4242
ARCHITECTURES = tuple(Architecture)


def verdict(architecture: Architecture, number: int, *arguments: int, seen_as: int | None = None) -> int:
    """What the filter built for `architecture` answers to this call."""
    data = {0: number, 4: architecture.value if seen_as is None else seen_as}
    data |= {16 + 8 * index: argument & 0xFFFFFFFF for index, argument in enumerate(arguments)}
    program = seccomp.program(architecture, PID)
    accumulator = counter = 0
    while True:
        step = program[counter]
        counter += 1
        match step.code:
            case seccomp.LOAD:
                accumulator = data.get(step.operand, 0)
            case seccomp.AND:
                accumulator &= step.operand
            case seccomp.RETURN:
                return step.operand
            case seccomp.IF_EQUAL:
                counter += step.true if accumulator == step.operand else step.false
            case seccomp.IF_AT_LEAST:
                counter += step.true if accumulator >= step.operand else step.false
            case seccomp.IF_ANY_BIT:
                counter += step.true if accumulator & step.operand else step.false


def number(name: str, architecture: Architecture) -> int:
    table = (*ALLOWED, *CONDITIONAL, *ABSENT, *FATAL)
    syscall = next(each for each in table if each.name == name)
    found = syscall.x86_64 if architecture is Architecture.X86_64 else syscall.aarch64
    assert found is not None
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
class TestOnEachArchitecture:
    def test_lets_an_interpreter_work(self, architecture: Architecture) -> None:
        for name in ("read", "write", "mmap", "futex", "exit_group", "getrandom", "newfstatat"):
            assert verdict(architecture, number(name, architecture)) == ALLOW, name

    def test_kills_at_every_call_no_tool_has_a_reason_for(self, architecture: Architecture) -> None:
        for syscall in FATAL:
            assert verdict(architecture, number(syscall.name, architecture)) == KILL_PROCESS, syscall.name

    def test_refuses_what_is_not_listed(self, architecture: Architecture) -> None:
        listed = {_number(each, architecture) for each in (*ALLOWED, *CONDITIONAL, *ABSENT, *FATAL)}
        unlisted = [candidate for candidate in range(512) if candidate not in listed]
        assert len(unlisted) > 100
        assert {verdict(architecture, candidate) for candidate in unlisted} == {REFUSE}

    def test_kills_a_call_made_as_another_architecture(self, architecture: Architecture) -> None:
        i386 = 0x40000003
        assert verdict(architecture, number("read", architecture), seen_as=i386) == KILL_PROCESS

    def test_allows_threads_and_refuses_processes(self, architecture: Architecture) -> None:
        clone = number("clone", architecture)
        assert verdict(architecture, clone, seccomp.CLONE_THREAD | 0xF00) == ALLOW
        assert verdict(architecture, clone, 17) == REFUSE

    def test_makes_the_c_library_fall_back_from_calls_it_cannot_judge(self, architecture: Architecture) -> None:
        assert verdict(architecture, number("clone3", architecture)) == NOT_IMPLEMENTED
        assert verdict(architecture, number("openat2", architecture)) == NOT_IMPLEMENTED

    def test_lets_a_process_signal_itself_only(self, architecture: Architecture) -> None:
        for name in ("kill", "tgkill"):
            assert verdict(architecture, number(name, architecture), PID, PID, 6) == ALLOW
            assert verdict(architecture, number(name, architecture), PID - 1, PID, 9) == REFUSE
            assert verdict(architecture, number(name, architecture), -1, 9) == REFUSE

    def test_lets_a_process_limit_itself_only(self, architecture: Architecture) -> None:
        prlimit = number("prlimit64", architecture)
        assert verdict(architecture, prlimit, 0) == ALLOW
        assert verdict(architecture, prlimit, 1) == REFUSE

    def test_refuses_emptying_a_file_opened_for_reading(self, architecture: Architecture) -> None:
        openat = number("openat", architecture)
        assert verdict(architecture, openat, 0, 0, os.O_RDONLY | os.O_CLOEXEC) == ALLOW
        assert verdict(architecture, openat, 0, 0, os.O_WRONLY | os.O_TRUNC) == ALLOW
        assert verdict(architecture, openat, 0, 0, os.O_RDONLY | os.O_TRUNC) == REFUSE

    def test_refuses_to_turn_off_death_with_the_parent(self, architecture: Architecture) -> None:
        prctl = number("prctl", architecture)
        set_parent_death_signal, set_name = 1, 15
        assert verdict(architecture, prctl, set_parent_death_signal, 0) == REFUSE
        assert verdict(architecture, prctl, set_name) == ALLOW

    def test_refuses_to_aim_signals_of_a_descriptor_at_others(self, architecture: Architecture) -> None:
        fcntl, set_owner, get_flags = number("fcntl", architecture), 8, 3
        assert verdict(architecture, fcntl, 1, set_owner) == REFUSE
        assert verdict(architecture, fcntl, 1, get_flags) == ALLOW


def test_kills_calls_by_x32_numbers() -> None:
    read_by_x32 = seccomp.X32_BIT | 0
    assert verdict(Architecture.X86_64, read_by_x32) == KILL_PROCESS


def test_has_no_number_twice() -> None:
    for architecture in ARCHITECTURES:
        numbers = [_number(each, architecture) for each in (*ALLOWED, *CONDITIONAL, *ABSENT, *FATAL)]
        known = [each for each in numbers if each is not None]
        assert len(known) == len(set(known))


def test_every_conditional_call_has_a_condition_that_can_refuse() -> None:
    for syscall in CONDITIONAL:
        answers = [step.operand for step in seccomp._condition(syscall.name, PID) if step.code == seccomp.RETURN]
        assert REFUSE in answers, syscall.name


def _number(syscall: Syscall, architecture: Architecture) -> int | None:
    return syscall.x86_64 if architecture is Architecture.X86_64 else syscall.aarch64

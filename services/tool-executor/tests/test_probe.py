from tool_executor.sandboxes import probe as probing
from tool_executor.sandboxes.probe import Capabilities, Missing, capabilities
from tool_executor.sandboxes.sandbox import Level


def test_finds_what_really_works_here(capabilities: Capabilities) -> None:
    assert Level.L1 in capabilities.levels
    assert (Level.L2 in capabilities.levels) == (not capabilities.missing)


def test_offers_no_jail_when_any_part_of_it_is_missing() -> None:
    found = capabilities(0, {"landlock": "ENOSYS: Function not implemented"})
    assert found.best is Level.L1
    assert found.missing == (Missing("landlock", "ENOSYS: Function not implemented"),)
    assert "Linux 5.13" in found.fix


def test_offers_our_own_process_only_without_resource_limits() -> None:
    assert capabilities(7, {"rlimits": "256 MiB was not enforced"}).levels == (Level.L0,)


def test_counts_a_restriction_that_does_not_bite_as_missing() -> None:
    def nothing_is_refused() -> None:
        probing._expect(1, "forking", lambda: None)

    assert probing._failure_of(nothing_is_refused) == "forking was not refused"


def test_reports_the_kernels_own_word_for_a_refusal() -> None:
    def refused() -> None:
        raise OSError(38, "Function not implemented")

    assert probing._failure_of(refused) == "ENOSYS: Function not implemented"

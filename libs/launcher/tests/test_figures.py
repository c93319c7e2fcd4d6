"""What the engine prints becomes the figures of each container."""

import pytest
from launcher.figures import Figures, bytes_of, ready_after_s, table

BEGAN = "2026-11-21T23:50:43.352001456Z"
PHASE = '{{"event":"phase","phase":"{}","state":"{}"}}'


@pytest.mark.parametrize(
    ("line", "seconds"),
    [
        (PHASE.format("ready", "ok"), 3.5),
        ("[1] 2026/11/21 23:50:46.852 [INF] Server is ready", 3.5),
        ("UTC [1] LOG:  database system is ready to accept connections", 3.5),
        ("provider simulator: OpenAI http://0.0.0.0:7199/v1", 3.5),
        (PHASE.format("ready", "failed"), None),
        (PHASE.format("grpc", "ok"), None),
        ("somebody asked the provider simulator: nothing", None),
    ],
)
def test_a_program_serves_when_its_log_says_so(line: str, seconds: float | None) -> None:
    assert ready_after_s(
        BEGAN, ["2026-11-21T23:50:44.000000000Z starts", f"2026-11-21T23:50:46.852001456Z {line}"]
    ) == (seconds)


def test_a_server_that_is_ready_twice_serves_from_the_second_time() -> None:
    """PostgreSQL starts once to make its databases."""
    ready = "database system is ready to accept connections"
    log = [f"2026-11-21T23:50:{second}.352001Z {ready}" for second in (45, 47)]
    assert ready_after_s(BEGAN, log) == 4


def test_a_silent_program_has_no_time() -> None:
    assert ready_after_s(BEGAN, []) is None


@pytest.mark.parametrize(
    ("printed", "expected"),
    [("512B / 64MiB", 512), ("73.89MiB / 512MiB", 77_479_281), ("1.5GiB / 2GiB", 1_610_612_736), ("0B / 0B", 0)],
)
def test_memory_is_read_as_the_engine_prints_it(printed: str, expected: int) -> None:
    assert bytes_of(printed) == expected


@pytest.mark.parametrize("printed", ["", "-- / --", "12 parsecs"])
def test_what_is_no_size_is_refused(printed: str) -> None:
    with pytest.raises(ValueError, match="no size"):
        bytes_of(printed)


def test_of_replicas_the_largest_figure_counts() -> None:
    quick, hungry = Figures(10, 1.5, None), Figures(10, None, 70)
    assert quick.largest(hungry) == Figures(10, 1.5, 70)


def test_the_table_is_in_the_order_of_the_services_and_leaves_out_what_nobody_told() -> None:
    found = {
        "jaeger": Figures(None, None, 2**20),
        "postgres": Figures(228_000_000, 3.44, 190 * 2**20),
        "ws-gateway": Figures(114_400_000, 4.0, None),
        "agent-registry": Figures(110_000_000, 2.96, 75 * 2**20),
    }
    assert table(found).splitlines() == [
        "| container | image, MB | serves after, s | memory, MiB |",
        "|---|---|---|---|",
        "| agent-registry | 110 | 3.0 | 75 |",
        "| ws-gateway | 114 | 4.0 |  |",
        "| postgres | 228 | 3.4 | 190 |",
        "| jaeger |  |  | 1 |",
    ]

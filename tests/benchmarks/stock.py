"""The stock eventsourcing library on PostgreSQL, as a peer: installed, unchanged, with its documented settings."""

import threading
import time
from statistics import median
from uuid import UUID

import psycopg
from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event
from eventsourcing.persistence import Tracking, TrackingRecorder
from eventsourcing.postgres import PostgresTrackingRecorder
from eventsourcing.projection import Projection, ProjectionRunner
from harness import Load


class Recorded(Aggregate):
    """An aggregate with an event of our size."""

    @event("Started")
    def __init__(self) -> None:
        self.text = ""

    @event("Recorded")
    def record(self, text: str) -> None:
        self.text = text


class CountView(PostgresTrackingRecorder):
    """The library's own tracking, one upsert a position; the view itself is that one row."""


def settings(dsn: str) -> dict[str, str]:
    parts = psycopg.conninfo.conninfo_to_dict(dsn)
    return {
        "PERSISTENCE_MODULE": "eventsourcing.postgres",
        "POSTGRES_DBNAME": str(parts["dbname"]),
        "POSTGRES_HOST": str(parts["host"]),
        "POSTGRES_PORT": str(parts["port"]),
        "POSTGRES_USER": str(parts["user"]),
        "POSTGRES_PASSWORD": str(parts.get("password", "")),
        "POSTGRES_POOL_SIZE": "10",
    }


def save(dsn: str, seconds: float, threads: int = 8, persistence: str = "eventsourcing.postgres") -> Load:
    """One event a save, by the library's own Application on the recorder of a persistence module."""
    application = Application[UUID](env=settings(dsn) | {"PERSISTENCE_MODULE": persistence})
    load, start = Load(), time.perf_counter()
    until = start + seconds

    def caller() -> None:
        recorded = Recorded()
        while (begun := time.perf_counter()) < until:
            recorded.record("x" * 250)
            application.save(recorded)
            load.latencies_s.append(time.perf_counter() - begun)

    callers = [threading.Thread(target=caller) for _ in range(threads)]
    for each in callers:
        each.start()
    for each in callers:
        each.join()
    load.took_s = time.perf_counter() - start
    application.close()
    return load


def open_long(dsn: str, events: int, openings: int) -> tuple[float, float]:
    """Milliseconds (median) to get an aggregate of so many events from the repository, without and with a snapshot."""
    application = Application[UUID](env=settings(dsn) | {"IS_SNAPSHOTTING_ENABLED": "y"})
    recorded = Recorded()
    for number in range(1, events):
        recorded.record("x" * 250)
        if number % 1_000 == 0:
            application.save(recorded)
    application.save(recorded)
    whole = _opening_ms(application, recorded.id, max(3, openings // 5))
    application.take_snapshot(recorded.id)
    snapshot = _opening_ms(application, recorded.id, openings)
    application.close()
    return whole, snapshot


def _opening_ms(application: Application[UUID], id: UUID, times: int) -> float:
    took = []
    for _ in range(times):
        begun = time.perf_counter()
        application.repository.get(id)
        took.append(1e3 * (time.perf_counter() - begun))
    return median(took)


class Counting(Projection[TrackingRecorder]):
    """The least a projection can do: remember how far it is, one transaction an event."""

    topics = ()

    def process_event(self, _: object, tracking: Tracking) -> None:
        self.view.insert_tracking(tracking)


def project(dsn: str, events: int) -> float:
    """Events a second through ProjectionRunner, counted over what it tracked."""
    env = settings(dsn)
    application = Application[UUID](env=env)
    for _ in range(events // 100):
        recorded = Recorded()
        for _ in range(99):
            recorded.record("x" * 250)
        application.save(recorded)
    last = application.recorder.max_notification_id() or 0
    application.close()
    with ProjectionRunner(
        application_class=Application, projection_class=Counting, view_class=CountView, env=env
    ) as runner:
        start = time.perf_counter()
        runner.wait(last, timeout=300)
        return last / (time.perf_counter() - start)

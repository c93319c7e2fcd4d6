"""Checkpoints of a log in PostgreSQL: what they cost nobody, and every attack they find."""

import ast
import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson
import psycopg
import pytest
from eventlog.chain import sealed
from eventlog.checkpoints import Attestation, CheckpointLimits, Checkpoints
from eventlog.ending import end
from eventlog.errors import CheckpointMissing, EventMissing, HistoryRewritten, KeyUnusable
from eventlog.merkle import CompactRange, leaf_hash, verify_consistency, verify_inclusion
from eventlog.postgres import PostgresEventLog
from eventlog.records import Context, StoredEvent, StreamId
from eventlog.rpc import to_attestation, to_event
from eventlog.signing import Checkpoint, SigningKey
from eventlog.testing import a_stream, an_append, an_event, rechained
from google.protobuf.json_format import MessageToJson
from psycopg_pool import AsyncConnectionPool
from synod.common.ids import uuid7

SCRIPT = Path(__file__).parent.parent / "verify_inclusion.py"
STREAM_SCRIPT = Path(__file__).parent.parent / "verify_stream.py"
KEY = SigningKey.generate()


@dataclass
class Bench:
    """A log with its checkpoints, and the hands of an attacker who may write the database."""

    dsn: str
    log: PostgresEventLog
    pool: AsyncConnectionPool
    checkpoints: Checkpoints
    published: list[Checkpoint] = field(default_factory=list)

    async def append(self, count: int) -> None:
        await self.log.append(an_append(a_stream(), *[an_event(data=b'{"n":%d}' % n) for n in range(count)]))

    async def grow(self, *counts: int) -> None:
        """Append so many events, and make a checkpoint after each lot."""
        for count in counts:
            await self.append(count)
            await self.checkpoints.make()

    async def sql(self, statement: str) -> None:
        async with await psycopg.AsyncConnection.connect(self.dsn, autocommit=True) as connection:
            await connection.execute(statement.encode())

    async def rewrite(self, change: Callable[[StoredEvent], StoredEvent], start: int) -> None:
        """Change the event at `start` and recompute every hash from there on, the head's too."""
        first, *others = await self.log.read(start - 1)
        async with await psycopg.AsyncConnection.connect(self.dsn) as connection:
            for forged in rechained([change(first), *others]):
                await connection.execute(
                    "update eventlog.events set data = %s, stream_previous_hash = %s, previous_hash = %s, hash = %s"
                    " where position = %s",
                    [forged.data, forged.stream_previous_hash, forged.previous_hash, forged.hash, forged.position],
                )
            await connection.execute("update eventlog.head set hash = %s", [forged.hash])

    def another(self, **changed: object) -> Checkpoints:
        """As in another process."""
        return Checkpoints(self.pool, self.log, "orders", KEY, **changed)  # type: ignore[arg-type]


@pytest.fixture
async def bench(postgres_dsn: str) -> AsyncIterator[Bench]:
    published: list[Checkpoint] = []

    async def publish(checkpoint: Checkpoint) -> None:
        published.append(checkpoint)

    async with (
        await PostgresEventLog.open(postgres_dsn) as log,
        AsyncConnectionPool(postgres_dsn, min_size=1, max_size=4, open=False) as pool,
    ):
        checkpoints = Checkpoints(pool, log, "orders", KEY, publish=publish)
        await checkpoints.prepare()
        yield Bench(postgres_dsn, log, pool, checkpoints, published)


async def until(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def root(events: list[StoredEvent]) -> bytes:
    tree = CompactRange()
    for event in events:
        tree.append(leaf_hash(event.hash))
    return tree.root()


async def test_a_checkpoint_attests_to_head_and_root_of_all_events(bench: Bench) -> None:
    await bench.append(5)
    checkpoint = await bench.checkpoints.make()
    events = await bench.log.read()
    assert checkpoint is not None
    assert (checkpoint.log, checkpoint.position) == ("orders", 5)
    assert (checkpoint.head_hash, checkpoint.root_hash) == (events[-1].hash, root(events))
    assert KEY.trusted.problem(checkpoint, "orders") == ""
    assert bench.published == [checkpoint] == await bench.checkpoints.page()
    assert await bench.checkpoints.latest() == checkpoint


async def test_nothing_is_signed_twice(bench: Bench) -> None:
    assert await bench.checkpoints.make() is None
    await bench.grow(3)
    assert await bench.checkpoints.make() is None
    assert len(bench.published) == 1


async def test_the_tree_goes_on_from_what_is_stored(bench: Bench) -> None:
    """Over block boundaries, in lots of any size, the root is that of all events."""
    await bench.grow(255, 1, 1, 300, 511)
    events = [*await bench.log.read(limit=600), *await bench.log.read(600, limit=600)]
    for checkpoint in bench.published:
        assert checkpoint.root_hash == root(events[: checkpoint.position])
    assert [checkpoint.position for checkpoint in bench.published] == [255, 256, 257, 557, 1068]


async def test_a_checkpoint_reads_only_what_is_new(bench: Bench) -> None:
    """Hashes of finished blocks are never looked at again: here they are gone, and nobody notices."""
    await bench.grow(1000, 900)
    assert await stored_nodes(bench) == {8: 7, 9: 3, 10: 1}
    await bench.sql("update eventlog.events set hash = '\\x00' where position <= 1792")
    await bench.grow(100)
    assert bench.published[-1].position == 2000


async def stored_nodes(bench: Bench) -> dict[int, int]:
    async with bench.pool.connection() as connection:
        rows = await (await connection.execute("select level, count(*) from eventlog.tree group by level")).fetchall()
    return dict(rows)


@pytest.mark.parametrize(
    ("limits", "due"),
    [
        (CheckpointLimits(every_events=10, every_s=600, rest_s=600), "after so many events"),
        (CheckpointLimits(every_s=0.01, rest_s=600), "after so long"),
        (CheckpointLimits(every_s=600, rest_s=0.01), "when the log rests"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_the_task_makes_one(bench: Bench, limits: CheckpointLimits, due: str) -> None:
    task = asyncio.create_task(bench.another(limits=limits, publish=bench.checkpoints._publish).run())
    await bench.append(10)
    await until(lambda: len(bench.published) == 1)
    await end(task)
    assert bench.published[0].position == 10


async def test_a_log_that_another_key_signed_is_not_taken_over(bench: Bench) -> None:
    """A key that was lost, or given to the wrong service, is told at the start."""
    await bench.grow(3)
    foreign = Checkpoints(bench.pool, bench.log, "orders", SigningKey.generate())
    with pytest.raises(KeyUnusable, match=f"signed by another key, {KEY.key_id}, at position 3; give that key back"):
        await foreign.prepare()
    renewed = Checkpoints(bench.pool, bench.log, "orders", SigningKey.generate(), trusted=KEY.trusted)
    await renewed.prepare()
    assert await renewed.latest() == bench.published[0]


async def test_processes_take_turns(bench: Bench) -> None:
    makers = [bench.another() for _ in range(4)]
    for _ in range(5):
        await bench.append(7)
        made = await asyncio.gather(*[maker.make() for maker in makers])
        assert len([checkpoint for checkpoint in made if checkpoint]) == 1
    assert (await bench.checkpoints.verify()).checkpoints == 5


async def test_checkpoints_cannot_be_changed_or_deleted(bench: Bench) -> None:
    await bench.grow(3)
    for statement in ("update eventlog.checkpoints set position = 2", "delete from eventlog.checkpoints"):
        with pytest.raises(psycopg.errors.RaiseException, match="never changed or deleted"):
            await bench.sql(statement)


async def test_every_checkpoint_is_exported_as_a_line_of_json(bench: Bench) -> None:
    await bench.grow(3, 4, 5)
    lines = [line async for line in bench.checkpoints.export()]
    assert [Checkpoint.from_json(line) for line in lines] == bench.published


async def test_an_untouched_log_verifies_with_its_checkpoints(bench: Bench) -> None:
    await bench.grow(300, 300, 300)
    await bench.append(10)
    found = await bench.checkpoints.verify()
    assert (found.ok, found.events, found.checkpoints, found.attested_to) == (True, 910, 3, 900)
    part = await bench.checkpoints.verify(first=601, last=905)
    assert (part.ok, part.events, part.checkpoints, part.attested_to) == (True, 305, 1, 900)
    between = await bench.checkpoints.verify(first=450, last=600)
    assert (between.ok, between.events, between.checkpoints) == (True, 151, 1)


async def test_an_empty_log_verifies(bench: Bench) -> None:
    assert (await bench.checkpoints.verify()).ok


Attack = Callable[[Bench], Awaitable[None]]
CHECKPOINT_AGAIN = "alter table eventlog.checkpoints disable trigger append_only; "


async def tampered_row(bench: Bench) -> None:
    await bench.sql("update eventlog.events set data = '{}' where position = 40")


async def deleted_row(bench: Bench) -> None:
    await bench.sql("delete from eventlog.events where position = 40")


async def swapped_pair(bench: Bench) -> None:
    await bench.sql(
        "update eventlog.events set position = -40 where position = 40;"
        "update eventlog.events set position = 40 where position = 41;"
        "update eventlog.events set position = 41 where position = -40"
    )


async def rechained_tail(bench: Bench) -> None:
    await bench.rewrite(lambda event: event._replace(data=b'{"n":"forged"}'), 40)


async def cut_tail(bench: Bench) -> None:
    (last,) = await bench.log.read(79, limit=1)
    await bench.sql(
        "delete from eventlog.events where position > 80;"
        f"update eventlog.head set position = 80, hash = '\\x{last.hash.hex()}'"
    )


async def rechained_tail_with_its_checkpoints_deleted(bench: Bench) -> None:
    await rechained_tail(bench)
    await bench.sql(CHECKPOINT_AGAIN + "delete from eventlog.checkpoints where position > 40")


async def forged_checkpoint(bench: Bench) -> None:
    await bench.sql(CHECKPOINT_AGAIN + "update eventlog.checkpoints set root_hash = head_hash where position = 60")


ATTACKS: list[tuple[Attack, int, str]] = [
    (tampered_row, 40, "differs from what was hashed"),
    (deleted_row, 40, "the event is missing"),
    (swapped_pair, 40, "does not name its predecessor's hash"),
    (rechained_tail, 60, "it was rewritten after position 30"),
    (cut_tail, 81, "the event is missing: 90 events were signed"),
    (forged_checkpoint, 60, "the checkpoint is forged: its signature is not valid"),
]


@pytest.mark.parametrize(("attack", "broken_at", "reason"), ATTACKS, ids=lambda value: getattr(value, "__name__", ""))
async def test_each_attack_is_found_at_its_first_position(
    bench: Bench, attack: Attack, broken_at: int, reason: str
) -> None:
    await bench.grow(30, 30, 30)
    await attack(bench)
    found = await bench.checkpoints.verify()
    assert (found.ok, found.broken_at) == (False, broken_at)
    assert reason in found.reason


async def test_a_change_of_any_column_is_found(bench: Bench) -> None:
    await bench.grow(30, 30)
    async with bench.pool.connection() as connection:
        found = await connection.execute(
            "select column_name, data_type from information_schema.columns"
            " where table_schema = 'eventlog' and table_name = 'events'"
        )
        columns = await found.fetchall()
    assert {name for name, _ in columns} == set(StoredEvent._fields)
    await bench.sql("create table saved as table eventlog.events")
    for name, kind in columns:
        await bench.sql(f"update eventlog.events set {name} = {CHANGED[kind].format(name)} where position = 40")
        found = await bench.checkpoints.verify()
        assert (found.ok, found.broken_at) == (False, 40), name
        await bench.sql("truncate eventlog.events; insert into eventlog.events select * from saved")
    assert (await bench.checkpoints.verify()).ok


CHANGED = {
    "bigint": "{} + 1000",
    "integer": "{} + 1",
    "text": "coalesce({}, '') || 'x'",
    "uuid": "gen_random_uuid()",
    "timestamp with time zone": "{} + interval '1 microsecond'",
    "bytea": "set_byte({0}, 0, get_byte({0}, 0) # 1)",
}


async def test_the_chain_alone_does_not_find_a_rechained_tail(bench: Bench) -> None:
    """Why there are checkpoints."""
    await bench.grow(30, 30, 30)
    await rechained_tail(bench)
    assert (await bench.log.verify()).ok


async def test_a_witness_finds_what_was_hidden_by_deleting_checkpoints(bench: Bench) -> None:
    await bench.grow(30, 30, 30)
    await rechained_tail_with_its_checkpoints_deleted(bench)
    assert (await bench.checkpoints.verify()).ok
    found = await bench.checkpoints.verify(witnessed=bench.published)
    assert (found.ok, found.broken_at, found.attested_to) == (False, 60, 30)


@pytest.mark.parametrize("attack", [attack for attack, _, _ in ATTACKS[1:4]], ids=lambda attack: attack.__name__)
async def test_a_range_that_starts_after_the_damage_betrays_it_by_its_root(bench: Bench, attack: Attack) -> None:
    """All but a tampered row, whose hash still stands: then the range itself is as it was signed."""
    await bench.grow(30, 30, 30)
    await attack(bench)
    found = await bench.checkpoints.verify(first=50, last=90)
    assert not found.ok
    assert found.broken_at is not None and found.broken_at >= 40


@pytest.mark.parametrize(
    "attack", [rechained_tail, cut_tail, forged_checkpoint, rechained_tail_with_its_checkpoints_deleted]
)
async def test_nothing_is_signed_on_top_of_a_rewritten_history(bench: Bench, attack: Attack) -> None:
    await bench.grow(30, 30)
    if attack is not forged_checkpoint:
        await bench.grow(30)
    await attack(bench)
    await bench.append(5)
    with pytest.raises(HistoryRewritten):
        await bench.checkpoints.make()
    assert [checkpoint.position for checkpoint in bench.published][:2] == [30, 60]


async def test_a_damaged_tree_is_computed_anew_from_the_events(bench: Bench) -> None:
    await bench.grow(600)
    for damage in ("update eventlog.tree set hash = '\\x00'", "delete from eventlog.tree"):
        await bench.sql(damage)
        assert (await bench.checkpoints.verify(first=601)).ok
        await bench.grow(1)
        assert (await bench.checkpoints.verify()).ok
    assert (await bench.checkpoints.prove(17)).event.position == 17


async def test_a_key_is_rotated_by_trusting_the_old_one(bench: Bench) -> None:
    await bench.grow(3)
    renewed = Checkpoints(bench.pool, bench.log, "orders", SigningKey.generate(), trusted=KEY.trusted)
    await bench.append(3)
    await renewed.make()
    assert (await renewed.verify()).checkpoints == 2
    assert "is not trusted" in (await bench.checkpoints.verify()).reason


async def test_every_event_of_a_grown_log_is_proven(bench: Bench) -> None:
    await bench.grow(200, 100, 300)
    for position in (1, 2, 200, 201, 256, 257, 300, 301, 512, 513, 600):
        attestation = await bench.checkpoints.prove(position)
        assert attestation.event.position == position
        assert attestation.checkpoint == next(c for c in bench.published if c.position >= position)
        assert verify_inclusion(attestation.event.hash, attestation.proof, attestation.checkpoint.root_hash)


async def test_checkpoints_are_proven_consistent(bench: Bench) -> None:
    await bench.grow(1, 6, 249, 256, 100)
    for number, old in enumerate(bench.published):
        for new in bench.published[number:]:
            proof = await bench.checkpoints.consistency_proof(old, new)
            assert verify_consistency(proof, old.root_hash, new.root_hash)


async def test_two_checkpoints_of_different_histories_have_no_proof(bench: Bench) -> None:
    await bench.grow(30, 30)
    old, new = bench.published
    with pytest.raises(HistoryRewritten, match="another history"):
        await bench.checkpoints.consistency_proof(replace(old, root_hash=b"x" * 32), new)
    with pytest.raises(ValueError, match="cannot be the continuation"):
        await bench.checkpoints.consistency_proof(new, old)


async def test_no_proof_is_given_for_what_was_changed_or_is_not_there(bench: Bench) -> None:
    await bench.grow(30)
    await bench.append(1)
    with pytest.raises(CheckpointMissing):
        await bench.checkpoints.prove(31)
    for position in (0, 32):
        with pytest.raises(EventMissing):
            await bench.checkpoints.prove(position)
    await rechained_tail_from(bench, 10)
    with pytest.raises(HistoryRewritten):
        await bench.checkpoints.prove(10)
    await bench.sql("delete from eventlog.events where position = 11")
    with pytest.raises(HistoryRewritten):
        await bench.checkpoints.prove(10)


async def rechained_tail_from(bench: Bench, start: int) -> None:
    await bench.rewrite(lambda event: event._replace(data=b"{}"), start)


async def check(folder: Path, event: str, proof: str, checkpoint: str, public_pem: bytes) -> tuple[int, str]:
    """What the stand-alone script says, in a process and a folder of its own."""
    files = {"event.json": event, "proof.json": proof, "checkpoint.json": checkpoint}
    return await run_script(SCRIPT, folder, files, public_pem)


async def run_script(script: Path, folder: Path, files: dict[str, str], public_pem: bytes) -> tuple[int, str]:
    for name, text in files.items():
        (folder / name).write_text(text)
    (folder / "public.pem").write_bytes(public_pem)
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-I", str(script), *files, "public.pem",
        cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await program.communicate()
    return program.returncode or 0, output.decode()


def documents(attestation: Attestation, *, whole: bool = False) -> dict[str, str]:
    """The three documents; `whole` with the fields that are empty, as some programs write them."""
    response = to_attestation(attestation)
    return {
        name: MessageToJson(
            getattr(response, name), preserving_proto_field_name=True, always_print_fields_with_no_presence=whole
        )
        for name in ("event", "proof", "checkpoint")
    }


async def attested(bench: Bench) -> Attestation:
    context = Context("acme", "zoë", "run-1", uuid7(), "00-1-2-01")
    named = replace(an_event("Placed", b'{"x":1}'), data_subject="person-1")
    await bench.append(300)
    await bench.log.append(an_append(a_stream(), named, context=context))
    await bench.grow(50)
    return await bench.checkpoints.prove(301)


async def test_a_third_party_checks_an_event_with_the_script_and_the_public_key_alone(
    bench: Bench, tmp_path: Path
) -> None:
    attestation = await attested(bench)
    status, output = await check(tmp_path, **documents(attestation), public_pem=KEY.public_pem)
    assert (status, output) == (0, "")
    plain = await bench.checkpoints.prove(17)
    assert (await check(tmp_path, **documents(plain), public_pem=KEY.public_pem))[0] == 0
    assert (await check(tmp_path, **documents(plain, whole=True), public_pem=KEY.public_pem))[0] == 0
    exported = documents(plain) | {"checkpoint": plain.checkpoint.to_json()}
    assert (await check(tmp_path, **exported, public_pem=KEY.public_pem))[0] == 0


@pytest.mark.parametrize(("script", "lines_max"), [(SCRIPT, 50), (STREAM_SCRIPT, 75)])
def test_the_script_is_short_and_depends_on_one_package(script: Path, lines_max: int) -> None:
    text = script.read_text()
    assert len(text.splitlines()) <= lines_max
    nodes = ast.walk(ast.parse(text))
    imported = {name for node in nodes for name in _imported(node)} - sys.stdlib_module_names
    assert imported == {"cryptography"}


def _imported(node: ast.AST) -> list[str]:
    match node:
        case ast.Import(names=names):
            return [name.name.split(".")[0] for name in names]
        case ast.ImportFrom(module=str(module)):
            return [module.split(".")[0]]
    return []


@pytest.mark.parametrize(
    ("document", "change", "reason"),
    [
        ("event", {"data": "e30="}, "the event is not the one signed"),
        ("event", {"actor": "mallory"}, "the event is not the one signed"),
        ("event", {"position": "300"}, "the event is not the one signed"),
        ("event", {"position": "999"}, "the event is not the one signed"),
        ("proof", {"path": []}, "the event is not the one signed"),
        ("checkpoint", {"position": "352"}, "the checkpoint is not signed by this key"),
        ("checkpoint", {"root_hash": "e30="}, "the checkpoint is not signed by this key"),
    ],
)
async def test_the_script_finds_what_was_changed(
    bench: Bench, tmp_path: Path, document: str, change: dict[str, object], reason: str
) -> None:
    parts = documents(await attested(bench))
    parts[document] = orjson.dumps(orjson.loads(parts[document]) | change).decode()
    assert await check(tmp_path, **parts, public_pem=KEY.public_pem) == (1, f"{reason}\n")


async def test_the_script_refuses_another_key(bench: Bench, tmp_path: Path) -> None:
    parts = documents(await attested(bench))
    status, output = await check(tmp_path, **parts, public_pem=SigningKey.generate().public_pem)
    assert (status, output) == (1, "the checkpoint is not signed by this key\n")


ORDER = StreamId("order", "audited")


async def grow_order(bench: Bench, *, linked: bool = True) -> None:
    """An event of the audited stream between others; unlinked, as they were before there was a chain for each stream."""
    await bench.log.append(an_append(ORDER, an_event(data=b'{"x":1}')), an_append(a_stream()))
    if not linked:
        stored = (await bench.log.read_stream(ORDER))[-1]
        old = sealed(stored._replace(stream_previous_hash=None), stored.previous_hash)
        next_one = (await bench.log.read(stored.position))[0]
        after = sealed(next_one, old.hash)
        await bench.sql(
            f"update eventlog.events set stream_previous_hash = null, hash = '\\x{old.hash.hex()}'"
            f" where position = {old.position};"
            f"update eventlog.events set previous_hash = '\\x{old.hash.hex()}', hash = '\\x{after.hash.hex()}'"
            f" where position = {after.position};"
            f"update eventlog.head set hash = '\\x{after.hash.hex()}'"
        )


async def exported_stream(bench: Bench, *versions: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The events of the stream and the proofs of these versions, as `synod events prove --stream` writes them."""
    events = await bench.log.read_stream(ORDER)
    proven = [documents(await bench.checkpoints.prove(events[version - 1].position)) for version in versions]
    proofs = [{name: orjson.loads(each[name]) for name in ("proof", "checkpoint")} for each in proven]
    return [orjson.loads(MessageToJson(to_event(event), preserving_proto_field_name=True)) for event in events], proofs


async def check_stream(folder: Path, events: object, proofs: object, public_pem: bytes = KEY.public_pem) -> str:
    """What the stand-alone script for a stream says; empty if it holds."""
    files = {"stream.json": orjson.dumps(events).decode(), "proofs.json": orjson.dumps(proofs).decode()}
    status, output = await run_script(STREAM_SCRIPT, folder, files, public_pem)
    assert status == (1 if output else 0)
    return output.strip()


async def test_a_third_party_checks_a_whole_stream_by_the_proof_of_its_last_event(bench: Bench, tmp_path: Path) -> None:
    for _ in range(5):
        await grow_order(bench)
        await bench.checkpoints.make()
    events, proofs = await exported_stream(bench, 5)
    assert await check_stream(tmp_path, events, proofs) == ""
    _, proof_of_third = await exported_stream(bench, 3)
    assert await check_stream(tmp_path, events[:3], proof_of_third) == ""
    assert await check_stream(tmp_path, events, proofs, SigningKey.generate().public_pem) == (
        "the checkpoint over version 5 is not signed by this key"
    )


async def test_what_was_stored_before_streams_had_a_chain_is_proven_event_by_event(
    bench: Bench, tmp_path: Path
) -> None:
    for linked in (False, False, True, False, True):
        await grow_order(bench, linked=linked)
    await bench.checkpoints.make()
    found = await bench.checkpoints.verify_stream(ORDER)
    assert (found.ok, found.attested, [end.version for end in found.ends]) == (True, True, [1, 3, 5])
    events, proofs = await exported_stream(bench, 1, 3, 5)
    assert await check_stream(tmp_path, events, proofs) == ""
    assert await check_stream(tmp_path, events, proofs[1:]) == "version 1 has no proof"
    events[0]["actor"] = "mallory"
    assert await check_stream(tmp_path, events, proofs) == "version 1 is not the one signed"


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (lambda events: events.pop(0), "version 1 is missing"),
        (lambda events: events.pop(1), "version 2 is missing"),
        (lambda events: events.pop(), "version 2 has no proof"),
        (lambda events: events.clear(), "there are no events"),
        (lambda events: events[0].update(actor="mallory"), "version 2 does not follow the one before it"),
        (lambda events: events[1].update(stream_previous_hash="AAAA"), "version 2 does not follow the one before it"),
        (lambda events: events[1].pop("stream_previous_hash"), "version 1 has no proof"),
        (lambda events: events[0].pop("stream_previous_hash"), "version 2 does not follow the one before it"),
        (lambda events: events[2].update(data="e30="), "version 3 is not the one signed"),
        (lambda events: events[2].update(stream="order/another"), "version 3 is missing"),
    ],
)
async def test_the_script_finds_what_was_done_to_a_stream(
    bench: Bench, tmp_path: Path, change: Callable[[list[dict[str, Any]]], object], finding: str
) -> None:
    for _ in range(3):
        await grow_order(bench)
    await bench.checkpoints.make()
    events, proofs = await exported_stream(bench, 3)
    change(events)
    assert await check_stream(tmp_path, events, proofs) == finding


async def test_a_stream_is_attested_to_once_a_checkpoint_covers_its_last_event(bench: Bench) -> None:
    await grow_order(bench)
    assert not (await bench.checkpoints.verify_stream(ORDER)).attested
    await bench.checkpoints.make()
    assert (await bench.checkpoints.verify_stream(ORDER)).attested
    await grow_order(bench)
    found = await bench.checkpoints.verify_stream(ORDER)
    assert (found.ok, found.events, found.attested) == (True, 2, False)


async def test_a_stream_rewritten_with_both_its_chains_is_not_the_one_signed(bench: Bench) -> None:
    for _ in range(3):
        await grow_order(bench)
    await bench.checkpoints.make()
    await bench.rewrite(lambda event: event._replace(data=b"{}"), 1)
    found = await bench.checkpoints.verify_stream(ORDER)
    assert (found.broken_at, found.attested) == (3, False)
    assert "not the one signed" in found.reason


@pytest.mark.parametrize(("signed", "newer"), [(1, 1), (3, 1), (4, 5)])
async def test_a_rewritten_stream_is_found_also_where_newer_events_name_it(
    bench: Bench, signed: int, newer: int
) -> None:
    for _ in range(signed):
        await grow_order(bench)
    await bench.checkpoints.make()
    await bench.rewrite(lambda event: event._replace(data=b"{}"), 1)
    async with await PostgresEventLog.open(bench.dsn) as log:  # it remembers nothing of before
        for _ in range(newer):
            await log.append(an_append(ORDER))
    found = await bench.checkpoints.verify_stream(ORDER)
    assert (found.broken_at, found.attested) == (signed, False)


async def test_a_stream_under_a_forged_checkpoint_does_not_hold(bench: Bench) -> None:
    await grow_order(bench)
    await bench.checkpoints.make()
    await bench.sql(
        "alter table eventlog.checkpoints disable trigger append_only;"
        "update eventlog.checkpoints set signed_at = signed_at - interval '1 s'"
    )
    assert "forged" in (await bench.checkpoints.verify_stream(ORDER)).reason

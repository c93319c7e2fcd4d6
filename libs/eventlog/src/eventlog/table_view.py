"""A view that is one table: for each type of event a function from a row to the next.

    class AccountsView(TableView[Account]):     # Account is a frozen dataclass: its fields are the columns
        name, version, row = "accounts", 1, Account

        @begins
        def opened(self, event: Opened, stored: StoredEvent) -> Account:
            return Account(id=stored.stream.id, owner=event.owner)

        @on
        def deposited(self, account: Account, event: Deposited, stored: StoredEvent) -> Account:
            return replace(account, cents=account.cents + event.cents)

The table follows from the dataclass, the types of events from the functions' annotations. A batch is folded in memory:
its rows are read by one statement, and each row that changed is written once, however many events it had.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from types import UnionType
from typing import Any, ClassVar, Final, Generic, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints
from uuid import UUID

from psycopg.rows import kwargs_row

from eventlog.codec import Codec, EventModel, UnknownEvent, Upcaster
from eventlog.errors import RowMissing
from eventlog.records import StoredEvent
from eventlog.sealing import NO_KEYS
from eventlog.vault import Vault
from eventlog.view_tables import Connection

Row = TypeVar("Row")
V = TypeVar("V")
E = TypeVar("E", bound=EventModel)
Key = tuple[object, ...]

_MARK: Final = "_folds"
_COLUMN_TYPES: Final[dict[object, str]] = {
    str: "text",
    int: "bigint",
    bool: "boolean",
    float: "double precision",
    datetime: "timestamptz",
    bytes: "bytea",
    UUID: "uuid",
}


class _Fold(NamedTuple):
    """How events of one type are folded; `begins`: without regard to the row that is there."""

    function: Callable[..., Any]
    begins: bool


def begins(function: Callable[[V, E, StoredEvent], Row]) -> Callable[[V, E, StoredEvent], Row]:
    """The method makes a row of an event of the types that its parameter `event` is annotated with, whatever row was."""
    setattr(function, _MARK, _Fold(function, begins=True))
    return function


def on(function: Callable[[V, Row, E, StoredEvent], Row | None]) -> Callable[[V, Row, E, StoredEvent], Row | None]:
    """The method gives the row as such an event leaves it, None to delete it."""
    setattr(function, _MARK, _Fold(function, begins=False))
    return function


class TableView(Generic[Row]):
    """A View (folding.py). A subclass gives `name`, `version`, `row`, and its functions.

    Functions are inherited, and replaced by one of the same name; an event type is taken by one of them.

    Columns of the dataclass `row` are str, int, bool, float, datetime, bytes, UUID, tuples of these, or any of them or
    None. `key` names the primary key, `indexes` is what follows `create index on <name>`. `upcasters` lift old versions as
    a Codec's do. With a `vault` personal fields are opened; a view that keeps them says `personal = True`.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    row: ClassVar[type[Any]]
    key: ClassVar[tuple[str, ...]] = ("id",)
    indexes: ClassVar[tuple[str, ...]] = ()
    upcasters: ClassVar[Mapping[tuple[str, int], Upcaster]] = {}
    personal: ClassVar[bool] = False
    types: ClassVar[frozenset[str] | None]
    tables: ClassVar[str]
    _folds: ClassVar[dict[str, _Fold]]
    _codec: ClassVar[Codec[EventModel]]
    _sql: ClassVar[_Statements]

    def __init_subclass__(cls) -> None:
        folds = _folds(cls)
        columns = _columns(cls.row)
        cls._folds = {event.type_name(): fold for event, fold in folds.items()}
        cls._codec = Codec(folds, cls.upcasters)
        cls._sql = _Statements(cls.name, columns, cls.key)
        cls.types = cls._codec.types
        cls.tables = _ddl(cls.name, columns, cls.key, cls.indexes)

    def __init__(self, vault: Vault | None = None) -> None:
        self._vault = vault

    def key_of(self, event: Any, stored: StoredEvent) -> Key:
        """The key of the row that an event is about: by default the id of its stream."""
        return (stored.stream.id,)

    def fold(self, row: Row | None, event: EventModel, stored: StoredEvent) -> Row | None:
        """The row after one more event, None if there is none any more. RowMissing if the event needs one."""
        fold = self._folds[stored.type]
        if not fold.begins and row is None:
            raise RowMissing(self.name, stored.type, self.key_of(event, stored))
        folded: Row | None = fold.function(self, *(() if fold.begins else (row,)), event, stored)
        return folded

    async def apply(self, connection: Connection, events: Sequence[StoredEvent]) -> None:
        keys = await self._vault.keys(events) if self._vault else NO_KEYS
        decoded = [(stored, self._codec.decode(stored, keys)) for stored in events]
        known = [(stored, event) for stored, event in decoded if not isinstance(event, UnknownEvent)]
        before = await self._load(connection, known)
        rows: dict[Key, Row | None] = dict(before)
        for stored, event in known:
            key = self.key_of(event, stored)
            rows[key] = self.fold(rows.get(key), event, stored)
        # What the batch began was not looked up, so it may be there, also where the batch has ended it again.
        changed = {key: row for key, row in rows.items() if key not in before or row != before[key]}
        async with connection.cursor() as cursor:
            await cursor.executemany(self._sql.delete, [key for key, row in changed.items() if row is None])
            await cursor.executemany(
                self._sql.upsert, [self._sql.values(row) for row in changed.values() if row is not None]
            )

    async def _load(self, connection: Connection, events: Iterable[tuple[StoredEvent, EventModel]]) -> dict[Key, Row]:
        """The rows that events change; not of those that the batch begins anyhow, and deletes at most."""
        begun: dict[Key, bool] = {}
        for stored, event in events:
            begun.setdefault(self.key_of(event, stored), self._folds[stored.type].begins)
        wanted = [key for key, is_begun in begun.items() if not is_begun]
        if not wanted:
            return {}
        async with connection.cursor(row_factory=kwargs_row(self._made)) as cursor:
            await cursor.execute(self._sql.select, [list(column) for column in zip(*wanted, strict=True)])
            return {tuple(getattr(row, name) for name in self.key): row for row in await cursor.fetchall()}

    def _made(self, **values: object) -> Row:
        made: Row = self.row(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})
        return made


class _Statements:
    """The statements of one table."""

    def __init__(self, table: str, columns: Mapping[str, str], key: Sequence[str]) -> None:
        self._columns = tuple(columns)
        names, keys = _list(columns), _list(key)
        arrays = ", ".join(f"%s::{columns[name].removesuffix(_NOT_NULL)}[]" for name in key)
        update = ", ".join(f'"{name}" = excluded."{name}"' for name in columns if name not in key)
        self.select = f'select {names} from "{table}" where ({keys}) in (select * from unnest({arrays}))'.encode()
        self.delete = f'delete from "{table}" where ({keys}) = ({_places(key)})'.encode()
        self.upsert = (
            f'insert into "{table}" ({names}) values ({_places(columns)}) on conflict ({keys}) do '
            + (f"update set {update}" if update else "nothing")
        ).encode()

    def values(self, row: object) -> list[object]:
        values = [getattr(row, name) for name in self._columns]
        return [list(value) if isinstance(value, tuple) else value for value in values]


_NOT_NULL: Final = " not null"


def _columns(row: type[Any]) -> dict[str, str]:
    """The columns of a dataclass, each with its type. TypeError for what has no type in PostgreSQL."""
    hints = get_type_hints(row)
    return {field.name: _column_type(row, field.name, hints[field.name]) for field in fields(row)}


def _column_type(row: type[Any], name: str, hint: object) -> str:
    if get_origin(hint) in (Union, UnionType):
        (inner,) = [each for each in get_args(hint) if each is not type(None)]
        return _column_type(row, name, inner).removesuffix(_NOT_NULL)
    if get_origin(hint) is tuple:
        return _column_type(row, name, get_args(hint)[0]).removesuffix(_NOT_NULL) + "[]" + _NOT_NULL
    if hint not in _COLUMN_TYPES:
        raise TypeError(f"{row.__qualname__}.{name}: {hint} is no type of a column")
    return _COLUMN_TYPES[hint] + _NOT_NULL


def _ddl(table: str, columns: Mapping[str, str], key: Sequence[str], indexes: Iterable[str]) -> str:
    lines = [*(f'"{name}" {kind}' for name, kind in columns.items()), f"primary key ({_list(key)})"]
    more = "".join(f'create index on "{table}" {index};\n' for index in indexes)
    return f'create table "{table}" (\n    {f",{chr(10)}    ".join(lines)}\n);\n{more}'


def _list(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _places(names: Iterable[str]) -> str:
    return ", ".join("%s" for _ in names)


def _folds(view: type[object]) -> dict[type[EventModel], _Fold]:
    """What is marked in a class and those it inherits from, by the types of events that it takes. TypeError if two
    functions take one.
    """
    members = {name: member for base in reversed(view.__mro__) for name, member in vars(base).items()}
    folds: dict[type[EventModel], _Fold] = {}
    takers: dict[str, str] = {}
    for name, member in members.items():
        fold: _Fold | None = getattr(member, _MARK, None)
        if fold is None:
            if any(hasattr(vars(base).get(name), _MARK) for base in view.__mro__):
                raise TypeError(f"{view.__qualname__}: {name} replaces one that takes events; mark it with @on too")
            continue
        for event in _events(fold.function):
            taker = takers.setdefault(event.type_name(), name)
            if taker != name:
                raise TypeError(
                    f"{view.__qualname__}: {taker} and {name} both take {event.type_name()}; keep one of them"
                )
            folds[event] = fold
    return folds


def _events(function: Callable[..., object]) -> tuple[type[EventModel], ...]:
    hint = get_type_hints(function)["event"]
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)

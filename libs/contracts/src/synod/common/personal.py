"""Marks for personal data in events: whom a fact is about, and which fields are about them.

    class Invited(Event):
        AGGREGATE = "guest"
        guest: Annotated[str, DataSubject()]     # a pseudonym, stays readable
        email: Annotated[str, Personal()]        # encrypted with the guest's own key before it is stored

A reader without the key, or after the key was destroyed, finds `ERASED` in every such field.
"""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, Final, get_args

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

Path = tuple[str | int, ...]
"""The way to a value in a JSON document: names and indexes, from the outside in."""


class Erased(str):
    """The type of `ERASED`: text, whatever the field's own type is."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "ERASED"


ERASED: Final = Erased("[erased]")
"""What a personal field reads as when its key is not there: destroyed, or never given to this reader."""


class Personal:
    """Marks a field of an event, or of a model in it, as personal. Its type may be any: `ERASED` passes it."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        dump = core_schema.wrap_serializer_function_ser_schema(_dump, schema=schema)
        return core_schema.no_info_wrap_validator_function(_validate, schema, serialization=dump)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {**handler(schema), "personal": True}


class DataSubject:
    """Marks the field that names the person an event is about: a pseudonym, since it cannot be erased."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {**handler(schema), "data_subject": True}


@lru_cache(maxsize=4096)
def holds_personal_data(cls: type[BaseModel]) -> bool:
    """Whether any field of the model, at whatever depth, is marked."""
    return _any_personal(cls, set())


@lru_cache(maxsize=4096)
def data_subject_field(cls: type[BaseModel]) -> str | None:
    """The name of the field that names the person, if there is one."""
    return next((name for name, field in cls.model_fields.items() if _marked(field, DataSubject, "data_subject")), None)


def data_subject_of(event: BaseModel) -> str | None:
    """The person an event is about, by its marked field."""
    name = data_subject_field(type(event))
    return None if name is None else getattr(event, name)


def personal_paths(model: BaseModel) -> Iterator[Path]:
    """The ways to the marked fields of a model that hold something."""
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if not is_personal(field):
            yield from ((name, *rest) for rest in _paths_within(value))
        elif value is not None and value != ERASED:
            yield (name,)


def is_personal(field: FieldInfo) -> bool:
    """Marked by `Personal()`, or by json_schema_extra={"personal": True} where the field is text."""
    return _marked(field, Personal, "personal")


def _marked(field: FieldInfo, marker: type, name: str) -> bool:
    extra = field.json_schema_extra
    in_schema = isinstance(extra, Mapping) and extra.get(name) is True
    return in_schema or any(isinstance(each, marker) or each is marker for each in field.metadata)


def _paths_within(value: object) -> Iterator[Path]:
    match value:
        case BaseModel():
            yield from personal_paths(value)
        case Mapping():
            for key, item in value.items():
                yield from ((str(key), *rest) for rest in _paths_within(item))
        case list() | tuple():
            for index, item in enumerate(value):
                yield from ((index, *rest) for rest in _paths_within(item))


def _any_personal(cls: type[BaseModel], seen: set[type]) -> bool:
    seen.add(cls)
    return any(
        is_personal(field) or any(_any_personal(model, seen) for model in _models(field.annotation) - seen)
        for field in cls.model_fields.values()
    )


def _models(annotation: object) -> set[type[BaseModel]]:
    """The models that a type is made of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {annotation}
    return {model for argument in get_args(annotation) for model in _models(argument)}


def _validate(value: Any, handler: core_schema.ValidatorFunctionWrapHandler) -> Any:
    return ERASED if isinstance(value, str) and value == ERASED else handler(value)


def _dump(value: Any, handler: core_schema.SerializerFunctionWrapHandler) -> Any:
    return str(value) if isinstance(value, Erased) else handler(value)

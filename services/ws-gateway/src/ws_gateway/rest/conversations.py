"""Conversations with an agent: a message is answered whole, or as it is produced."""

from collections.abc import AsyncIterator
from typing import Annotated, Literal

from fastapi import APIRouter, Header, Request
from pydantic import BaseModel, ConfigDict, Field
from servicekit.errors import FailedPrecondition, ServiceError
from starlette.responses import Response

from ws_gateway.chat import TokenProduced, TurnEnded, TurnStarted, turn
from ws_gateway.clients import CallerServices
from ws_gateway.resources import Conversation, Item, Resource
from ws_gateway.rest.requests import Back, IdempotencyKey, Reference, Services, request_id
from ws_gateway.rest.sse import ServerEvent, stream

router = APIRouter(prefix="/conversations", tags=["conversations"])
Accept = Annotated[str, Header(description="text/event-stream for the answer as it is produced")]


class CreateConversation(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    agent: str = Field(min_length=1, max_length=200, description="name, name@version or digest of a definition")


class SendMessage(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str = Field(min_length=1, max_length=65_536)


class Started(Resource):
    run_id: str


class Token(Resource):
    run_id: str
    sequence: int
    text: str


class Answer(Resource):
    """The agent's answer to one message."""

    role: Literal["assistant"] = "assistant"
    run_id: str
    text: str
    model_calls: int
    tool_calls: int


@router.post("", status_code=201)
async def create_conversation(
    services: Services, body: CreateConversation, idempotency_key: IdempotencyKey = ""
) -> Item[Conversation]:
    return Item(data=await services.create_conversation(request_id(idempotency_key), body.agent))


@router.get("/{conversation_id}")
async def get_conversation(services: Services, conversation_id: Reference) -> Item[Conversation]:
    """With its messages, oldest first."""
    return Item(data=await services.conversation(conversation_id))


@router.post("/{conversation_id}/messages", response_model=Item[Answer])
async def send_message(
    request: Request,
    back: Back,
    services: Services,
    conversation_id: Reference,
    body: SendMessage,
    idempotency_key: IdempotencyKey = "",
    accept: Accept = "",
) -> Response:
    """Sends a message. The answer is one document, or with Accept: text/event-stream the events start, token, end."""
    key = request_id(idempotency_key)
    if "text/event-stream" in accept:
        await services.conversation(conversation_id)  # refused here as a problem, not in the stream
        events = _events(services, key, conversation_id, body.text)
        return stream(request, back, services.caller, f"conversation:{conversation_id}", events)
    answer = await _whole(services, key, conversation_id, body.text)
    return Response(Item(data=answer).model_dump_json(), media_type="application/json")


async def _whole(services: CallerServices, key: str, conversation_id: str, text: str) -> Answer:
    async for part in turn(services, key, conversation_id, text):
        if isinstance(part, TurnEnded):
            return _answer(part)
    raise AssertionError("a turn ends with TurnEnded or raises")


async def _events(services: CallerServices, key: str, conversation_id: str, text: str) -> AsyncIterator[ServerEvent]:
    async for part in turn(services, key, conversation_id, text):
        match part:
            case TurnStarted(run_id):
                yield ServerEvent("start", Started(run_id=run_id))
            case TokenProduced(run_id, sequence, piece):
                yield ServerEvent("token", Token(run_id=run_id, sequence=sequence, text=piece))
            case TurnEnded():
                yield ServerEvent("end", _answer(part))


def _answer(ended: TurnEnded) -> Answer:
    """Raises what came instead of an answer."""
    if not ended.answered:
        raise _failed(ended)
    run = ended.run
    return Answer(run_id=run.id, text=run.output, model_calls=run.model_calls, tool_calls=run.tool_calls)


def _failed(ended: TurnEnded) -> ServiceError:
    return FailedPrecondition(ended.problem, reason=ended.code, metadata={"run_id": ended.run.id})

"""One turn of a conversation, from the message to the whole answer, for whichever transport carries it."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

from ws_gateway.clients import CallerServices
from ws_gateway.resources import Run


@dataclass(frozen=True, slots=True)
class TurnStarted:
    run_id: str


@dataclass(frozen=True, slots=True)
class TokenProduced:
    """A piece of the answer; `sequence` counts from 1 within the run."""

    run_id: str
    sequence: int
    text: str


@dataclass(frozen=True, slots=True)
class TurnEnded:
    """The turn's run when it has ended, well or not."""

    run: Run

    @property
    def answered(self) -> bool:
        return self.run.state == "completed"

    @property
    def code(self) -> str:
        return self.run.failure.reason if self.run.failure else f"RUN_{self.run.state.upper()}"

    @property
    def problem(self) -> str:
        return self.run.failure.message if self.run.failure else f"run {self.run.id} ended as {self.run.state}"


TurnPart = TurnStarted | TokenProduced | TurnEnded


async def turn(services: CallerServices, request_id: str, conversation_id: str, text: str) -> AsyncIterator[TurnPart]:
    """Sends the message and tells how the answer comes about. The same request_id sends no second message."""
    run = await services.send_message(request_id, conversation_id, text)
    yield TurnStarted(run.id)
    async for update in services.watch_run(run.id):
        # Runs below the turn's own produce tokens too; they are not the answer.
        if update.is_token and update.run_id == run.id:
            yield TokenProduced(run.id, update.token_sequence, update.token)
    yield TurnEnded(await services.run(run.id))

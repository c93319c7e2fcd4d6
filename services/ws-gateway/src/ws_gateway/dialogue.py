"""What each message of a client leads to. One dialogue a connection; it sends through `send` and owns no socket."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from httpedge.callers import Caller, Callers
from opentelemetry.trace import SpanKind
from servicekit.clock import Clock
from servicekit.errors import ServiceError, Unauthenticated
from servicekit.telemetry import Logger, Tracing
from synod.common.ids import new_id

from ws_gateway import chat
from ws_gateway.clients import CallerServices, Services, refusal
from ws_gateway.errors import ChannelRefused, FrameRefused, HistoryLost
from ws_gateway.hub import channels, protocol
from ws_gateway.hub.channels import Channel, Follower
from ws_gateway.hub.outbox import Policy
from ws_gateway.hub.protocol import Incoming, Outgoing
from ws_gateway.monitoring import PERMISSION, Monitoring
from ws_gateway.resources import RunUpdate
from ws_gateway.sessions import Live, Register
from ws_gateway.settings import EdgeLimits
from ws_gateway.subscriptions import Feeds

UNAUTHENTICATED: Final = 4401
OVERFLOW: Final = 4408


@dataclass(frozen=True, slots=True)
class Backstage:
    """What all dialogues share."""

    callers: Callers
    services: Services
    feeds: Feeds
    monitoring: Monitoring
    register: Register
    limits: EdgeLimits
    tracing: Tracing
    log_: Logger
    clock: Clock


@dataclass(slots=True)
class Dialogue:
    """The state of one conversation with a client: what it follows, and which of its turns are running.

    `send` takes a frame and says what may become of it; `end` closes the connection.
    """

    back: Backstage
    live: Live
    credential: str
    send: Callable[[bytes, Policy], None]
    end: Callable[[int, str], None]
    _following: dict[str, Callable[[], Awaitable[None]]] = field(default_factory=dict)
    _turns: set[asyncio.Task[None]] = field(default_factory=set)
    _errands: set[asyncio.Task[None]] = field(default_factory=set)
    _said: int = 0

    @property
    def channels(self) -> tuple[str, ...]:
        return tuple(self._following)

    async def answer(self, message: Incoming) -> None:
        """Do what a message asks. What is refused is answered with system_error, never by silence."""
        try:
            with self.back.tracing.span(f"ws {type(message).__name__}", kind=SpanKind.SERVER):
                await self._dispatch(message)
        except FrameRefused as refused:
            self.refuse(refused, message.id)
        except Exception as error:  # noqa: BLE001 - the edge of a message: answered or recorded
            self._answer_error(error, message.id)

    def refuse(self, refused: FrameRefused, ref: str = "") -> None:
        self.say(
            protocol.ErrorFrame(
                id=self.next_id(),
                ref=refused.ref or ref,
                code=refused.code,
                message=refused.message,
                field=refused.field,
            )
        )

    def say(self, message: Outgoing, policy: Policy = "keep") -> None:
        self.send(protocol.write(message), policy)

    def next_id(self) -> str:
        self._said += 1
        return f"{self.live.id}:{self._said}"

    async def close(self) -> None:
        """Leave every channel and give up the turns: their runs go on without a listener."""
        for turn in tuple(self._turns):
            turn.cancel()
        for leave in tuple(self._following.values()):
            await leave()
        if tasks := self._turns | self._errands:
            await asyncio.wait(tasks)

    async def caller(self) -> Caller:
        """The caller with a token that is good now; the connection ends when there is none any more."""
        try:
            return await self.back.callers.identify(self.credential)
        except Unauthenticated as error:
            self.end(UNAUTHENTICATED, error.reason)
            raise

    async def _services(self) -> CallerServices:
        return self.back.services.in_name_of(await self.caller())

    async def _dispatch(self, message: Incoming) -> None:
        match message:
            case protocol.Auth():
                raise FrameRefused(
                    "ALREADY_AUTHENTICATED", "this connection is authenticated; open another one", "type"
                )
            case protocol.CreateStream():
                await self._create_stream(message)
            case protocol.StreamChat():
                self._begin_turn(message)
            case protocol.Subscribe():
                await self._subscribe(message, channels.parse(message.channel))
            case protocol.SubscribeMonitoring():
                subscribe = protocol.Subscribe(type="subscribe", id=message.id, channel="monitoring")
                await self._subscribe(subscribe, channels.MONITORING)
            case protocol.Unsubscribe():
                await self._unsubscribe(message)
            case _:
                await self._small(message)

    async def _small(self, message: Incoming) -> None:
        match message:
            case protocol.GetSystemMetrics():
                system = await self.back.monitoring.system(await self._services())
                self.say(protocol.SystemMetricsFrame(id=self.next_id(), ref=message.id, metrics=system))
            case protocol.GetAgentMetrics():
                agents = await self.back.monitoring.agents(await self._services())
                self.say(protocol.AgentMetricsFrame(id=self.next_id(), ref=message.id, metrics=agents))
            case protocol.Ping():
                self.say(protocol.ServerPong(id=self.next_id(), ref=message.id))
            case protocol.Pong():
                return
            case _:
                await self._report(message)

    async def _report(self, message: Incoming) -> None:
        reports = self.back.register.meters.reports
        match message:
            case protocol.ClientLog():
                reports.labels("log").inc()
                self.back.log_.info("client_log", session=self.live.id, level=message.level, text=message.message)
            case protocol.ButtonClick():
                reports.labels("click").inc()
                self.back.log_.debug("button_click", session=self.live.id, button=message.button)
            case protocol.LogError():
                reports.labels("error").inc()
                await self.back.register.report(self.live, message.message, message.detail)
        self.say(protocol.Acknowledged(id=self.next_id(), ref=message.id))

    # Chat

    async def _create_stream(self, message: protocol.CreateStream) -> None:
        conversation = await (await self._services()).create_conversation(new_id("req"), message.agent)
        self.say(
            protocol.StreamCreated(
                id=self.next_id(), ref=message.id, stream_id=conversation.id, agent=conversation.definition_name
            )
        )

    def _begin_turn(self, message: protocol.StreamChat) -> None:
        if len(self._turns) >= self.back.limits.chats_max:
            raise FrameRefused(
                "TOO_MANY_TURNS",
                f"{self.back.limits.chats_max} turns run on this connection; wait for a chat_response_complete",
                "stream_id",
            )
        _spawn(self._turn(message), self._turns)

    async def _turn(self, message: protocol.StreamChat) -> None:
        try:
            async for part in chat.turn(await self._services(), new_id("req"), message.stream_id, message.message):
                self._say_part(message, part)
        except Exception as error:  # noqa: BLE001 - the edge of a turn: told to the client
            code, text = self._told(error)
            self.say(
                protocol.StreamError(
                    id=self.next_id(), ref=message.id, stream_id=message.stream_id, code=code, message=text
                )
            )

    def _say_part(self, message: protocol.StreamChat, part: chat.TurnPart) -> None:
        common = {"id": self.next_id(), "ref": message.id, "stream_id": message.stream_id}
        match part:
            case chat.TurnStarted(run_id):
                self.say(protocol.ChatResponseStart(**common, run_id=run_id))
            case chat.TokenProduced(run_id, sequence, text):
                token = protocol.ChatResponseToken(**common, run_id=run_id, sequence=sequence, text=text)
                self.say(token, "drop_oldest")
            case chat.TurnEnded(run) if part.answered:
                self.say(
                    protocol.ChatResponseComplete(
                        **common,
                        run_id=run.id,
                        text=run.output,
                        model_calls=run.model_calls,
                        tool_calls=run.tool_calls,
                    )
                )
            case chat.TurnEnded(run):
                self.say(protocol.StreamError(**common, run_id=run.id, code=part.code, message=part.problem))

    # Channels

    async def _subscribe(self, message: protocol.Subscribe, channel: Channel) -> None:
        if str(channel) in self._following:
            raise ChannelRefused("ALREADY_SUBSCRIBED", f"channel '{channel}' is followed already; unsubscribe first")
        if len(self._following) >= self.back.limits.channels_max:
            raise ChannelRefused(
                "TOO_MANY_CHANNELS",
                f"a connection follows at most {self.back.limits.channels_max} channels; unsubscribe from one first",
            )
        match channel.kind:
            case "events":
                await self._follow_events(message, channel)
            case "run":
                await self._follow_run(message, channel)
            case "monitoring":
                await self._follow_monitoring(message)

    async def _unsubscribe(self, message: protocol.Unsubscribe) -> None:
        leave = self._following.pop(message.channel, None)
        if leave is None:
            followed = ", ".join(self._following) or "none"
            raise ChannelRefused("NOT_SUBSCRIBED", f"channel '{message.channel}' is not followed; followed: {followed}")
        await leave()
        self.say(protocol.Unsubscribed(id=self.next_id(), ref=message.id, channel=message.channel, code="UNSUBSCRIBED"))

    async def _follow_events(self, message: protocol.Subscribe, channel: Channel) -> None:
        caller = await self.caller()
        caller.require("events.read")
        follower = Follower(
            tenant=caller.principal.tenant,
            send=lambda frame: self.send(frame, "keep"),
            lost=partial(self._lost, str(channel), HistoryLost(channel.name)),
            held_max=self.back.limits.outbox_frames_max,
        )
        self._following[str(channel)] = partial(self.back.feeds.leave, channel.name, follower)
        try:
            caught = await self.back.feeds.catch_up(channel.name, follower, message.offset, message.epoch)
        except BaseException:
            await self._drop(str(channel))
            raise
        self.say(
            protocol.Subscribed(
                id=self.next_id(),
                ref=message.id,
                channel=str(channel),
                recovered=caught.recovered,
                offset=caught.offset,
                epoch=caught.epoch,
                publications=caught.publications,
            )
        )
        follower.release(caught.offset)

    async def _follow_run(self, message: protocol.Subscribe, channel: Channel) -> None:
        services, epoch = await self._services(), f"{channel.name}@log"
        after = message.offset or 0
        if message.epoch not in ("", epoch):
            after = 0
        await services.run(channel.name)  # refuses here what cannot be followed
        self.say(
            protocol.Subscribed(
                id=self.next_id(),
                ref=message.id,
                channel=str(channel),
                recovered=message.epoch in ("", epoch),
                offset=after,
                epoch=epoch,
            )
        )
        self._follow_by(str(channel), self._tell_run(services, channel, after, epoch))

    async def _tell_run(self, services: CallerServices, channel: Channel, after: int, epoch: str) -> None:
        async for update in services.watch_run(channel.name, after):
            if update.is_token:
                self.say(self._run_token(str(channel), update), "drop_oldest")
            else:
                self.say(_agent_event(str(channel), epoch, update))
        self._forget(str(channel), "RUN_ENDED", "the run has ended; nothing more will happen in it")

    async def _follow_monitoring(self, message: protocol.Subscribe) -> None:
        (await self.caller()).require(PERMISSION)
        self.say(
            protocol.Subscribed(
                id=self.next_id(), ref=message.id, channel="monitoring", recovered=False, offset=0, epoch=""
            )
        )
        self._follow_by("monitoring", self._tell_monitoring())

    async def _tell_monitoring(self) -> None:
        while True:
            metrics = await self.back.monitoring.system(await self._services())
            self.say(protocol.MonitoringUpdate(id=self.next_id(), metrics=metrics), "drop_oldest")
            await asyncio.sleep(self.back.limits.monitoring_s)

    def _follow_by(self, channel: str, telling: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(self._tell(channel, telling), name=f"follow {channel}")

        async def leave() -> None:
            task.cancel()
            await asyncio.wait([task])

        self._following[channel] = leave

    async def _tell(self, channel: str, telling: Coroutine[None, None, None]) -> None:
        try:
            await telling
        except Exception as error:  # noqa: BLE001 - the edge of a channel: told to the client
            self._forget(channel, *self._told(error))

    def _run_token(self, channel: str, update: RunUpdate) -> protocol.RunToken:
        return protocol.RunToken(
            id=self.next_id(),
            channel=channel,
            run_id=update.run_id,
            agent=update.agent,
            sequence=update.token_sequence,
            text=update.token,
        )

    def _lost(self, channel: str, error: HistoryLost) -> None:
        if leave := self._following.get(channel):
            self._forget(channel, "HISTORY_LOST", error.message)
            _spawn(_awaited(leave), self._errands)

    def _forget(self, channel: str, code: str, text: str) -> None:
        """The channel ended by itself."""
        self._following.pop(channel, None)
        self.say(protocol.Unsubscribed(id=self.next_id(), channel=channel, code=code, message=text))

    async def _drop(self, channel: str) -> None:
        leave = self._following.pop(channel, None)
        if leave is not None:
            await leave()

    # Errors

    def _answer_error(self, error: Exception, ref: str) -> None:
        code, text = self._told(error)
        field = getattr(refusal(error), "field", "")
        self.say(protocol.ErrorFrame(id=self.next_id(), ref=ref, code=code, message=text, field=field))

    def _told(self, error: Exception) -> tuple[str, str]:
        """The code and the words for an error; a defect gets an id that is also in the log."""
        known = refusal(error)
        if isinstance(error, ChannelRefused | HistoryLost):
            return known.reason if isinstance(known, ServiceError) else "REFUSED", error.message
        if known is not None:
            return known.reason, known.message
        error_id = new_id("err")
        self.back.log_.error("dialogue_failed", error=error, error_id=error_id, session=self.live.id)
        return "INTERNAL", f"ws-gateway failed unexpectedly; its log has the cause under error id {error_id}"


def _spawn(work: Coroutine[None, None, None], tasks: set[asyncio.Task[None]]) -> None:
    task = asyncio.create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)


async def _awaited(leave: Callable[[], Awaitable[None]]) -> None:
    await leave()


def _agent_event(channel: str, epoch: str, update: RunUpdate) -> protocol.AgentEvent:
    return protocol.AgentEvent(
        id=f"{channel}:{update.cursor}",
        channel=channel,
        offset=update.cursor,
        epoch=epoch,
        run_id=update.run_id,
        agent=update.agent,
        event=update.type,
        summary=update.summary,
        at=update.at,
        data=update.data,
    )

"""The least that a gateway can be: takes a call, passes it on, gives the answer back. No budget, no events, no limits.

``python forwarder.py <simulator origin> <http port> <grpc port>``: HTTP bodies go through as they are; over gRPC a
request becomes the body of a chat completion and its answer a message again, as any gateway must do.
"""

import asyncio
import sys
from collections.abc import AsyncIterator

import aiohttp
import grpc
import orjson
import uvloop
from aiohttp import web
from synod.llm_gateway.v1 import llm_gateway_pb2 as pb
from synod.llm_gateway.v1 import llm_gateway_pb2_grpc as rpc

ROLES = {pb.ROLE_SYSTEM: "system", pb.ROLE_USER: "user"}
DONE = b"[DONE]"


class Forwarder(rpc.LlmGatewayServicer):
    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    async def over_http(self, request: web.Request) -> web.StreamResponse:
        async with self._session.post(self._url, data=await request.read()) as answer:
            if answer.content_type != "text/event-stream":
                return web.Response(body=await answer.read(), content_type=answer.content_type)
            response = web.StreamResponse(headers={"content-type": "text/event-stream"})
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response

    async def Generate(self, request: pb.GenerateRequest, context: object) -> pb.GenerateResponse:
        async with self._session.post(self._url, data=body_of(request, stream=False)) as answer:
            found = orjson.loads(await answer.read())
        message = pb.Message(parts=[pb.Part(text=found["choices"][0]["message"]["content"])])
        return pb.GenerateResponse(request_id=request.request_id, message=message)

    async def Stream(self, request: pb.StreamRequest, context: object) -> AsyncIterator[pb.StreamEvent]:
        async with self._session.post(self._url, data=body_of(request.request, stream=True)) as answer:
            async for line in answer.content:
                data = line.removeprefix(b"data: ").strip()
                if not data:
                    continue
                if data == DONE:
                    yield pb.StreamEvent(completed=pb.GenerateResponse())
                    continue
                for choice in orjson.loads(data)["choices"]:
                    if text := choice["delta"].get("content"):
                        yield pb.StreamEvent(text_delta=text)


def body_of(request: pb.GenerateRequest, *, stream: bool) -> bytes:
    messages = [{"role": ROLES[one.role], "content": one.parts[0].text} for one in request.messages]
    return orjson.dumps({"model": request.model.rpartition("/")[2], "messages": messages, "stream": stream})


async def main(origin: str, http_port: int, grpc_port: int) -> None:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session:
        forwarder = Forwarder(session, f"{origin}/v1/chat/completions")
        application = web.Application()
        application.router.add_post("/v1/chat/completions", forwarder.over_http)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", http_port).start()
        server = grpc.aio.server()
        rpc.add_LlmGatewayServicer_to_server(forwarder, server)
        server.add_insecure_port(f"127.0.0.1:{grpc_port}")
        await server.start()
        await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.install()
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))

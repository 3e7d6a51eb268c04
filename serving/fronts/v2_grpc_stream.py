"""ModelStreamInfer: many requests by one call, and the responses to all of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from time import monotonic
from typing import Any

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from serving.calls import Call
from serving.errors import InvalidRequest, RequestError, Unavailable
from serving.fronts.grpc_rpc import CALLER_IS_GONE, Behavior, Context
from serving.fronts.grpc_status import abort, describe, is_too_late, metadata
from serving.fronts.v2_call import InferCall
from serving.fronts.v2_grpc_caller import deadline_of, new_call
from serving.fronts.v2_grpc_infer import Inference
from serving.model import Model
from serving.server import Server

MAX_IN_FLIGHT = 512
"""Requests of one stream. Many, because a stream that is not read may be holding back the very
request that others of it wait for, such as the one that ends a sequence."""
_STREAM = "inference.GRPCInferenceService/ModelStreamInfer"
POLL_S = 0.25
"""How often a stream without requests looks whether the server wants to stop."""


def streaming(server: Server, inference: Inference) -> Behavior:
    """ModelStreamInfer"""

    async def stream(messages: AsyncIterator[bytes], context: Context) -> None:
        try:
            await _Stream(inference, server, context).run(messages)
        except ExceptionGroup as group:
            await abort(context, group.exceptions[0])

    return stream


class _Stream:
    """One ModelStreamInfer call: requests come in, and the responses to all of them go out."""

    def __init__(self, inference: Inference, server: Server, context: Context):
        self._inference = inference
        self._server = server
        self._context = context
        self._call = new_call(context, _STREAM)
        context.set_trailing_metadata((("x-request-id", self._call.id),))
        self._deadline = deadline_of(context, monotonic())
        self._ends_on_error = metadata(context, "triton_grpc_error") == "true"
        self._slots = asyncio.Semaphore(MAX_IN_FLIGHT)
        self._in_flight = 0
        self._owed = 0
        """Bytes of requests that are being answered, and of answers to be sent."""
        # gRPC takes one message of a call at a time. Whoever ends the stream early keeps the lock:
        # a write that is cancelled goes on inside gRPC, which takes no status beside it.
        self._writing = asyncio.Lock()

    async def run(self, messages: AsyncIterator[bytes]) -> None:
        """Serve until the caller has sent its last request and every response went out.

        Raises an `ExceptionGroup` of what ends the stream early.
        """
        try:
            await self._run(messages)
        finally:
            # Of tasks that were cancelled before they began.
            self._owe(-self._owed)

    async def _run(self, messages: AsyncIterator[bytes]) -> None:
        async with asyncio.TaskGroup() as tasks:
            watch = tasks.create_task(self._stop_with_the_server())
            before: asyncio.Task[None] | None = None
            async for data in messages:
                size = len(data)
                try:
                    message = service_pb2.ModelInferRequest.FromString(data)
                except DecodeError:
                    await self._writing.acquire()
                    raise InvalidRequest("what was sent is not a message of this method") from None
                del data
                await self._slots.acquire()
                self._in_flight += 1
                self._owe(size)
                # Tasks start in the order in which they were made, and nothing is awaited before
                # a request has its place in the queue, so the order of the stream is kept.
                caller = self._new_call()
                before = tasks.create_task(self._serve(message, size, caller, before))
            watch.cancel()

    async def _serve(
        self, message: Any, size: int, caller: Call, before: asyncio.Task[None] | None
    ) -> None:
        """Answer a request of so many bytes. A single answer waits for those to all requests
        `before` it.

        Callers who give their requests no ids count on that order, which Triton keeps, too.
        """
        try:
            model, call = self._inference.parse(message, caller, self._deadline)
            if model.config.decoupled:
                await self._stream(message, model, call)
                return
            answer = self._inference.render(model, call, await self._server.infer(call.request))
            answer.parameters["triton_final_response"].bool_param = True
            data = service_pb2.ModelStreamInferResponse(infer_response=answer).SerializeToString()
            del answer  # The wait may be long, for who does not read.
            await self._send(data, before)
        except CALLER_IS_GONE:
            return
        except Exception as error:
            if self._ends_on_error or is_too_late(self._context, error):
                await self._writing.acquire()
                raise
            _, problem = describe(error)
            if isinstance(error, RequestError):
                # As Triton, which names a model only once it has taken the request.
                answer = service_pb2.ModelStreamInferResponse(error_message=problem)
                answer.infer_response.id = message.id
                await self._send(answer.SerializeToString(), before)
            else:
                await self._send(_final(message, problem), before)
        finally:
            self._inference.sent(caller)
            self._owe(-size)
            self._in_flight -= 1
            self._slots.release()

    async def _stream(self, message: Any, model: Model, call: InferCall) -> None:
        """The responses of a decoupled model, as they come."""
        async with aclosing(self._server.stream(call.request)) as responses:
            async for response in responses:
                answer = self._inference.render(model, call, response)
                answer.parameters["triton_final_response"].bool_param = False
                sent = service_pb2.ModelStreamInferResponse(infer_response=answer)
                await self._send(sent.SerializeToString())
        if call.wants_empty_final:
            await self._send(_final(message))

    def _owe(self, size: int) -> None:
        self._owed += size
        self._context.owe(size)

    def _new_call(self) -> Call:
        """For one request of the stream."""
        whole = self._call
        return Call(
            whole.front,
            whole.operation,
            whole.id,
            has_own_id=whole.has_own_id,
            traceparent=whole.traceparent,
            tracestate=whole.tracestate,
            received=monotonic(),
        )

    async def _send(self, data: bytes, before: asyncio.Task[None] | None = None) -> None:
        """When all is sent that is to be sent `before`, and it is the turn of this answer."""
        self._owe(len(data))
        try:
            await _ended(before)
            async with self._writing:
                await self._context.write(data)
        finally:
            self._owe(-len(data))

    async def _stop_with_the_server(self) -> None:
        """Ends a stream that nothing moves on any more, so that it does not hold up the server."""
        while not self._server.draining or self._in_flight:  # noqa: ASYNC110 - nobody tells us
            await asyncio.sleep(POLL_S)
        raise Unavailable("the server is shutting down")


async def _ended(task: asyncio.Task[None] | None) -> None:
    if task is not None and not task.done():
        await asyncio.wait([task])


def _final(message: Any, error: str = "") -> bytes:
    """The last word on a request, without tensors."""
    last = service_pb2.ModelStreamInferResponse(error_message=error)
    last.infer_response.id = message.id
    last.infer_response.model_name = message.model_name
    last.infer_response.model_version = message.model_version
    last.infer_response.parameters["triton_final_response"].bool_param = True
    return bytes(last.SerializeToString())

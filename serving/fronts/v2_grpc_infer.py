"""ModelInfer and ModelStreamInfer: the life of calls for inference."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import lru_cache, partial
from math import inf
from time import monotonic
from typing import Any

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from serving.calls import Call, Front, clean_id, new_id
from serving.errors import InvalidRequest, RequestError, Unavailable
from serving.fronts.grpc_rpc import CALLER_IS_GONE, Context, Metadata, Told, Work
from serving.fronts.grpc_status import (
    abort,
    describe,
    is_too_late,
    metadata,
    status,
)
from serving.fronts.v2_call import InferCall, check_wishes, place
from serving.fronts.v2_grpc_bytes import response_bytes
from serving.fronts.v2_grpc_messages import check_version, parse_infer, render_infer
from serving.fronts.v2_grpc_patterns import Patterns
from serving.ledger import Asked
from serving.model import Model
from serving.server import Server
from serving.types import InferRequest, InferResponse

MAX_IN_FLIGHT = 512
"""Requests of one stream. Many, because a stream that is not read may be holding back the very
request that others of it wait for, such as the one that ends a sequence."""
_INFER = "inference.GRPCInferenceService/ModelInfer"
_STREAM = "inference.GRPCInferenceService/ModelStreamInfer"
POLL_S = 0.25
"""How often a stream without requests looks whether the server wants to stop."""


class Inference:
    """The two RPCs that carry tensors."""

    def __init__(self, server: Server):
        self._server = server
        self._patterns: Patterns[Model] = Patterns()

    async def infer(self, data: bytes, context: Context) -> bytes:
        """ModelInfer, of messages as they travel."""
        caller = self._receive(context)
        try:
            model, call = self._read(data, caller, _deadline(context, caller.received))
            response = await self._server.infer(call.request)
            if not call.wishes:
                return self.write(response)
            answer: bytes = self.render(model, call, response).SerializeToString()
            return answer
        except Exception as error:
            await abort(context, error)

    def begin(self, data: bytes, context: Told) -> Work | None:
        """ModelInfer like an earlier one, of a model that tells its answers."""
        try:
            return self._begin(data, context)
        except Exception as error:
            context.fail(*status(context, error))
            return None

    def _begin(self, data: bytes, context: Told) -> Work | None:
        known = self._patterns.request(data)
        if known is None:
            return None
        request, model = known
        try:
            loaded = self._server.loaded(request.model_name, request.model_version)
        except RequestError:
            return None
        if model is not loaded.model or model.queue is None:
            return None
        caller = self._receive(context)
        request.asked_by(caller)
        request.deadline = _deadline(context, caller.received)
        asked = _Asked(request, self, context)
        self._server.ask(asked, loaded)
        return asked

    async def stream(self, messages: AsyncIterator[bytes], context: Context) -> None:
        """ModelStreamInfer"""
        try:
            await _Stream(self, self._server, context).run(messages)
        except ExceptionGroup as group:
            await abort(context, group.exceptions[0])

    def _receive(self, context: Context) -> Call:
        """A call all of which is there."""
        caller = _new_call(context, _INFER)
        context.set_trailing_metadata((("x-request-id", caller.id),))
        context.add_done_callback(partial(self._done, caller))
        caller.received = monotonic()
        return caller

    def _done(self, caller: Call, context: Context) -> None:
        code: Any = context.code()
        if code is not None:
            caller.status = code.name
        else:
            caller.status = "CANCELLED" if context.cancelled() else "OK"
        self.sent(caller)

    def sent(self, caller: Call) -> None:
        """The answer is with gRPC."""
        caller.sent = monotonic()
        self._server.sent(caller)

    def _read(self, data: bytes, caller: Call, deadline: float) -> tuple[Model, InferCall]:
        """As `parse`; what is like an earlier request is known without reading it."""
        known = self._patterns.request(data)
        if known is not None:
            request, like = known
            try:
                model = self._server.model(request.model_name, request.model_version)
            except RequestError as error:
                self._server.note_invalid(error, caller, request.model_name, request.model_version)
                raise
            if model is like:
                request.asked_by(caller)
                request.deadline = deadline
                return model, InferCall(request)
        try:
            message = service_pb2.ModelInferRequest.FromString(data)
        except DecodeError:
            raise InvalidRequest("the request is not a message of this method") from None
        model, call = self.parse(message, caller, deadline)
        self._patterns.learn(data, message, call, model)
        return model, call

    def parse(self, message: Any, caller: Call, deadline: float) -> tuple[Model, InferCall]:
        """A request as the server takes it, and its model; what keeps it from that is counted."""
        try:
            check_version(message.model_version)
            model = self._server.model(message.model_name, message.model_version)
            call = parse_infer(message, self._server.shared_memory)
            check_wishes(call, model.config.outputs, self._server.shared_memory)
        except RequestError as error:
            self._server.note_invalid(error, caller, message.model_name, message.model_version)
            raise
        call.request.asked_by(caller)
        call.request.deadline = deadline
        return model, call

    def write(self, response: InferResponse) -> bytes:
        """A response as it is, as it travels."""
        if not response.parameters:
            return response_bytes(response)
        answer: bytes = render_infer(response).SerializeToString()
        return answer

    def render(self, model: Model, call: InferCall, response: InferResponse) -> Any:
        """A response with its outputs as the caller wants them."""
        if not call.wishes:
            return render_infer(response)
        config = model.config
        outputs = place(
            call,
            response,
            labels=lambda name: config.labels.get(name, ()),
            shared_memory=self._server.shared_memory,
            batched=config.max_batch_size > 0,
        )
        return render_infer(response, outputs)


class _Asked(Asked):
    """A ModelInfer call that a model has been asked for."""

    __slots__ = ("_context", "_inference")

    def __init__(self, request: InferRequest, inference: Inference, context: Told):
        super().__init__(request)
        self._inference = inference
        self._context = context

    def answered(self, response: InferResponse) -> None:
        try:
            answer = self._inference.write(response)
        except Exception as error:
            self.failed(error)
        else:
            self._context.reply(answer)

    def failed(self, error: Exception) -> None:
        self._context.fail(*status(self._context, error))


class _Stream:
    """One ModelStreamInfer call: requests come in, and the responses to all of them go out."""

    def __init__(self, inference: Inference, server: Server, context: Context):
        self._inference = inference
        self._server = server
        self._context = context
        self._call = _new_call(context, _STREAM)
        context.set_trailing_metadata((("x-request-id", self._call.id),))
        self._deadline = _deadline(context, monotonic())
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
            await self._send(service_pb2.ModelStreamInferResponse(infer_response=answer), before)
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
                await self._send(answer, before)
            else:
                await self._send(self._final(message, problem), before)
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
                await self._send(service_pb2.ModelStreamInferResponse(infer_response=answer))
        if call.wants_empty_final:
            await self._send(self._final(message))

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

    async def _send(self, message: Any, before: asyncio.Task[None] | None = None) -> None:
        """When all is sent that is to be sent `before`, and it is the turn of this stream."""
        data: bytes = message.SerializeToString()
        del message  # The wait may be long for who does not read.
        self._owe(len(data))
        try:
            await _ended(before)
            async with self._writing:
                await self._context.write(data)
        finally:
            self._owe(-len(data))

    def _final(self, message: Any, error: str = "") -> Any:
        """The last word on a request, without tensors."""
        last = service_pb2.ModelStreamInferResponse(error_message=error)
        last.infer_response.id = message.id
        last.infer_response.model_name = message.model_name
        last.infer_response.model_version = message.model_version
        last.infer_response.parameters["triton_final_response"].bool_param = True
        return last

    async def _stop_with_the_server(self) -> None:
        """Ends a stream that nothing moves on any more, so that it does not hold up the server."""
        while not self._server.draining or self._in_flight:  # noqa: ASYNC110 - nobody tells us
            await asyncio.sleep(POLL_S)
        raise Unavailable("the server is shutting down")


async def _ended(task: asyncio.Task[None] | None) -> None:
    if task is not None and not task.done():
        await asyncio.wait([task])


def _new_call(context: Context, operation: str) -> Call:
    id, traceparent, tracestate = _identity(tuple(context.invocation_metadata() or ()))
    call = Call(Front.V2_GRPC, operation, id or new_id())
    if id:
        call.has_own_id = True
    if traceparent:
        call.traceparent, call.tracestate = traceparent, tracestate
    return call


@lru_cache(256)
def _identity(metadata: Metadata) -> tuple[str, str, str]:
    """Its caller's id for a call, and its place in a trace."""
    id = traceparent = tracestate = ""
    for name, value in metadata:
        if not isinstance(value, str):
            continue
        if name == "traceparent":
            traceparent = value
        elif name == "tracestate":
            tracestate = value
        elif name == "x-request-id":
            id = id or clean_id(value)
    return id, traceparent, tracestate


def _deadline(context: Context, now: float) -> float:
    """When the caller stops waiting, in seconds of the monotonic clock."""
    remaining = context.time_remaining()
    return inf if remaining is None else now + remaining

"""ModelInfer: the life of a call for inference."""

from __future__ import annotations

from functools import partial
from time import monotonic
from typing import Any

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from serving.calls import Call
from serving.errors import InvalidRequest, RequestError
from serving.fronts.grpc_rpc import Context, Told
from serving.fronts.grpc_status import abort, status
from serving.fronts.v2_call import InferCall, check_wishes, place
from serving.fronts.v2_grpc_bytes import response_bytes
from serving.fronts.v2_grpc_caller import deadline_of, new_call
from serving.fronts.v2_grpc_messages import check_version, parse_infer, render_infer
from serving.fronts.v2_grpc_patterns import Patterns
from serving.ledger import Asked, Cancellable
from serving.model import Model
from serving.server import Server
from serving.types import InferRequest, InferResponse

_INFER = "inference.GRPCInferenceService/ModelInfer"


class Inference:
    """ModelInfer, and what it shares with ModelStreamInfer."""

    def __init__(self, server: Server):
        self._server = server
        self._patterns: Patterns[Model] = Patterns()

    async def infer(self, data: bytes, context: Context) -> bytes:
        """ModelInfer, of messages as they travel."""
        caller = self._receive(context)
        try:
            model, call = self._read(data, caller, deadline_of(context, caller.received))
            response = await self._server.infer(call.request)
            if not call.wishes:
                return self.write(response)
            answer: bytes = self.render(model, call, response).SerializeToString()
            return answer
        except Exception as error:
            await abort(context, error)

    def begin(self, data: bytes, context: Told) -> Cancellable | None:
        """ModelInfer like an earlier one, of a model that tells its answers."""
        try:
            return self._begin(data, context)
        except Exception as error:
            context.fail(*status(context, error))
            return None

    def _begin(self, data: bytes, context: Told) -> Cancellable | None:
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
        request.deadline = deadline_of(context, caller.received)
        asked = _Asked(request, self, context)
        self._server.ask(asked, loaded)
        return asked

    def _receive(self, context: Context) -> Call:
        """A call all of which is there."""
        caller = new_call(context, _INFER)
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

"""For Triton's Python backend: a model that answers in steps, run by the same stepper as here.

A version directory has a `model.py` that hands over to this; see `MODEL_FILE`. Triton's Python
needs this package: `pip install 'slipway[cpu,text]'`. With `model_transaction_policy.decoupled` a
request of one row is answered as its text grows, any other once, at its end. All requests share
their steps, as they do here.
"""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import aclosing
from importlib import import_module
from pathlib import Path
from typing import Any

from serving.config import STEPPER
from serving.errors import RequestError, SlipwayError, Unserved
from serving.pbtxt import read_config
from serving.scheduling.meter import LateMeter
from serving.scheduling.stepper import Stepper
from serving.scheduling.stepping import StepScheduler
from serving.steppers import load_stepper
from serving.types import InferRequest, Tensors

MODEL_FILE = "model.py"
MODEL_TEXT = '''\
"""For Triton's Python backend, which needs Slipway's package: pip install 'slipway[cpu,text]'."""

from serving.triton_backend import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


class TritonPythonModel:
    """The interface that Triton's Python backend looks for in a `model.py`."""

    def initialize(self, args: dict[str, str]) -> None:
        # A module that only exists inside Triton.
        self._triton: Any = import_module("triton_python_backend_utils")
        model = Path(args["model_repository"])
        config = read_config(model)
        stepper = load_stepper(
            config.parameters.get(STEPPER, ""), config, model / args["model_version"]
        )
        try:
            stepper.warm()
        except BaseException:
            stepper.close()
            raise
        self._name = config.name
        self._stepper: Stepper[Any] = stepper
        self._streams = config.decoupled
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._scheduler = self._await(self._start(stepper))

    def execute(self, requests: list[Any]) -> list[Any] | None:
        if self._streams:
            for request in requests:
                sender = request.get_response_sender()
                asyncio.run_coroutine_threadsafe(self._stream(request, sender), self._loop)
            return None
        answers: list[Any] = self._await(self._answer_all(requests))
        return answers

    def finalize(self) -> None:
        self._await(self._scheduler.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._stepper.close()

    def _await(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _start(self, stepper: Stepper[Any]) -> StepScheduler[Any]:
        return StepScheduler(stepper, None, meter=LateMeter())

    async def _answer_all(self, requests: list[Any]) -> list[Any]:
        return await asyncio.gather(*(self._answer(request) for request in requests))

    async def _answer(self, request: Any) -> Any:
        try:
            call = self._call(request)
            return self._response(await self._scheduler.infer(call, _rows(call)))
        except SlipwayError as error:
            return self._failure(error)

    async def _stream(self, request: Any, sender: Any) -> None:
        final = self._triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        try:
            call = self._call(request)
            rows = _rows(call)
            if rows != 1:
                sender.send(self._response(await self._scheduler.infer(call, rows)), flags=final)
                return
            async with aclosing(self._scheduler.stream(call, rows)) as answers:
                async for answer in answers:
                    if sender.is_cancelled():
                        break
                    sender.send(self._response(answer))
            sender.send(flags=final)
        except Exception as error:  # Triton waits for a last word on every request
            sender.send(self._failure(error), flags=final)

    def _call(self, request: Any) -> InferRequest:
        inputs = {
            spec.name: self._triton.get_input_tensor_by_name(request, spec.name).as_numpy()
            for spec in self._stepper.inputs
        }
        parameters = json.loads(request.parameters() or "{}")
        return InferRequest(self._name, inputs, parameters=parameters)

    def _response(self, outputs: Tensors) -> Any:
        tensors = [self._triton.Tensor(name, value) for name, value in outputs.items()]
        return self._triton.InferenceResponse(tensors)

    def _failure(self, error: Exception) -> Any:
        codes = self._triton.TritonError
        if isinstance(error, RequestError):
            problem = codes(str(error), codes.INVALID_ARG)
        elif isinstance(error, Unserved):
            problem = codes(str(error), codes.UNAVAILABLE)
        else:
            problem = codes("the model failed", codes.INTERNAL)
        return self._triton.InferenceResponse(error=problem)


def _rows(call: InferRequest) -> int:
    return len(next(iter(call.inputs.values())))

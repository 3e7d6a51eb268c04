"""What Triton's Python backend runs for each model of `models.py`, by the model's name."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import triton_python_backend_utils as pb  # type: ignore[import-not-found]

Tensor = np.ndarray[Any, Any]


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        self._compute = COMPUTE.get(config["name"].split("-")[0], echo)
        self._name = config["name"]
        self._inputs = [(spec["name"], spec["data_type"]) for spec in config["input"]]
        self._outputs = [spec["name"] for spec in config["output"]]
        delay = config["parameters"].get("delay_ms", {"string_value": "0"})
        self._delay_s = float(delay["string_value"]) / 1e3
        self._sums: dict[Any, Tensor] = {}

    def execute(self, requests: list[Any]) -> list[Any] | None:
        time.sleep(self._delay_s)
        if self._name == "decoupled":
            for request in requests:
                self._repeat(request)
            return None
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        if self._name == "raises":
            return pb.InferenceResponse(error=pb.TritonError("it fails, as it should"))
        if self._name == "sequence":
            return self._answer([self._accumulated(request)])
        if self._bf16():
            return pb.InferenceResponse(output_tensors=[self._bf16_echo(request)])
        tensors = {name: pb.get_input_tensor_by_name(request, name) for name, _ in self._inputs}
        values = {name: tensor.as_numpy() for name, tensor in tensors.items() if tensor}
        return self._answer(self._compute(values))

    def _answer(self, values: list[Tensor]) -> Any:
        named = zip(self._outputs, values, strict=True)
        return pb.InferenceResponse([pb.Tensor(name, value) for name, value in named])

    def _bf16(self) -> bool:
        return bool(self._inputs[0][1] == "TYPE_BF16")

    def _bf16_echo(self, request: Any) -> Any:
        # numpy has no such type, so the tensor passes as it is.
        tensor = pb.get_input_tensor_by_name(request, self._inputs[0][0])
        return pb.Tensor.from_dlpack(self._outputs[0], tensor.to_dlpack())

    def _accumulated(self, request: Any) -> Tensor:
        key = request.correlation_id()
        value: Tensor = pb.get_input_tensor_by_name(request, "INPUT").as_numpy()
        # Triton fills the place of a sequence that sent nothing with a request that has no id.
        if not request.flags() & pb.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START:
            value = value + self._sums.get(key, np.int32(0))
        self._sums[key] = value
        return value

    def _repeat(self, request: Any) -> None:
        sender = request.get_response_sender()
        name = self._inputs[0][0]
        for element in pb.get_input_tensor_by_name(request, name).as_numpy().reshape(-1, 1):
            sender.send(self._answer([element]))
        sender.send(flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def echo(inputs: dict[str, Tensor]) -> list[Tensor]:
    return list(inputs.values())


def simple(inputs: dict[str, Tensor]) -> list[Tensor]:
    return [inputs["INPUT0"] + inputs["INPUT1"], inputs["INPUT0"] - inputs["INPUT1"]]


def optional(inputs: dict[str, Tensor]) -> list[Tensor]:
    return [inputs["REQUIRED"] + inputs.get("OPTIONAL", np.float32(7))]


COMPUTE: dict[str, Callable[[dict[str, Tensor]], list[Tensor]]] = {
    "simple": simple,
    "optional": optional,
}

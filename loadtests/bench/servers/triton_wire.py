"""A network in Triton's Python backend: requests that came together are a batch."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb  # type: ignore[import-not-found]


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        # Triton's Python has only its own folder on its path, where numpy is.
        sys.path += parameters["python_path"]["string_value"].split(":")
        from bare_session import BareSession

        graph = Path(args["model_repository"], args["model_version"], "model.onnx")
        threads = int(parameters["intra_op_thread_count"]["string_value"])
        self._session = BareSession(graph, threads)

    def execute(self, requests: list[Any]) -> list[Any]:
        inputs = [pb.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        y = self._session.run(inputs[0] if len(inputs) == 1 else np.concatenate(inputs))
        ends = np.cumsum([len(rows) for rows in inputs])[:-1]
        return [
            pb.InferenceResponse([pb.Tensor("y", np.ascontiguousarray(rows))])
            for rows in np.split(y, ends)
        ]

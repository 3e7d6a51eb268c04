"""ONNX Runtime as everybody has it: one session with the same options, in servers and without one.

No thread of it spins while it waits: on a machine that also serves, that takes the core away.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

Rows = npt.NDArray[np.float32]


class BareSession:
    """`x` in, `y` out, both [row, ...]."""

    def __init__(self, graph: Path, threads: int):
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session: Any = ort.InferenceSession(
            graph, options, providers=["CPUExecutionProvider"]
        )

    def run(self, x: Rows) -> Rows:
        [y] = self._session.run(["y"], {"x": x})
        answer: Rows = y
        return answer

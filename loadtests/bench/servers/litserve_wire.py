"""A network behind LitServe, which batches what is there: it waits for nobody."""

import argparse
from pathlib import Path
from typing import Any

import litserve
import numpy as np
from bare_session import BareSession, Rows


class Network(litserve.LitAPI):  # type: ignore[misc]
    def __init__(self, graph: Path, threads: int, shape: tuple[int, ...], **options: Any):
        super().__init__(**options)
        self._graph = graph
        self._threads = threads
        self._shape = shape

    def setup(self, device: str) -> None:
        self._session = BareSession(self._graph, self._threads)

    # LitServe reads this annotation, and only as an object: no `annotations` of the future here.
    def decode_request(self, request: dict[str, Any]) -> Rows:
        return np.array(request["x"], np.float32).reshape(self._shape)

    def batch(self, rows: list[Rows]) -> Rows:
        return np.stack(rows)

    def predict(self, x: Rows) -> Rows:
        return self._session.run(x)

    def unbatch(self, y: Rows) -> list[Rows]:
        return list(y)

    def encode_response(self, row: Rows) -> dict[str, list[float]]:
        return {"y": row.tolist()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--graph", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--shape", type=int, nargs="+", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--max-batch-size", type=int, required=True)
    options = parser.parse_args()
    api = Network(
        options.graph,
        options.threads,
        tuple(options.shape),
        max_batch_size=options.max_batch_size,
        batch_timeout=0.0,
    )
    server = litserve.LitServer(api, accelerator="cpu", timeout=False)
    server.run(host="127.0.0.1", port=options.port, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()

"""A network behind grpc.aio, as one would write it: the protocol's servicer, no batches."""

import argparse
import asyncio
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import uvloop
from bare_session import BareSession
from tritonclient.grpc import service_pb2, service_pb2_grpc


class Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    def __init__(self, session: BareSession):
        self._session = session

    async def ModelInfer(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        shape = tuple(request.inputs[0].shape)
        x = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(shape)
        y = self._session.run(x)
        answer = service_pb2.ModelInferResponse(
            model_name=request.model_name, model_version="1", raw_output_contents=[y.tobytes()]
        )
        answer.outputs.add(name="y", datatype="FP32", shape=y.shape)
        return answer


async def serve(session: BareSession, port: int) -> None:
    server = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Servicer(session), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--graph", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(BareSession(options.graph, options.threads), options.port))


if __name__ == "__main__":
    main()

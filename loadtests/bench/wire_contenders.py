"""Who answers in wire_speed.py, and how each of the servers is started."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from processes import HERE, ROOT, Uninstallable, environment, free_port, slipway
from wire_networks import MAX_BATCH, Network
from wire_requests import Wire

from tests.triton import peer


@dataclass(frozen=True)
class Contender:
    label: str
    server: str
    wire: Wire
    beside: str
    """The one of Slipway that it is compared with."""


CONTENDERS: Mapping[str, Contender] = {
    "slipway-json": Contender("Slipway, v2 JSON", "slipway", "v2-json", "slipway-json"),
    "slipway-binary": Contender("Slipway, v2 binary", "slipway", "v2-binary", "slipway-binary"),
    "slipway-grpc": Contender("Slipway, v2 gRPC", "slipway", "v2-grpc", "slipway-grpc"),
    "grpcio-plain": Contender("grpc.aio, its servicer", "grpcio", "v2-grpc", "slipway-grpc"),
    "triton-json": Contender("Triton, v2 JSON", "triton", "v2-json", "slipway-json"),
    "triton-binary": Contender("Triton, v2 binary", "triton", "v2-binary", "slipway-binary"),
    "triton-grpc": Contender("Triton, v2 gRPC", "triton", "v2-grpc", "slipway-grpc"),
    "fastapi": Contender("FastAPI, lists in JSON", "fastapi", "lists", "slipway-json"),
    "fastapi-raw": Contender("FastAPI, raw bytes", "fastapi", "raw", "slipway-binary"),
    "litserve": Contender("LitServe, lists in JSON", "litserve", "lists", "slipway-json"),
    "mlserver-json": Contender("MLServer, v2 JSON", "mlserver", "v2-json", "slipway-json"),
    "mlserver-grpc": Contender("MLServer, v2 gRPC", "mlserver", "v2-grpc", "slipway-grpc"),
}
SERVERS: Mapping[str, str] = {
    "slipway": "Slipway",
    "grpcio": "grpc.aio",
    "triton": "Triton, Python backend",
    "fastapi": "FastAPI",
    "litserve": "LitServe",
    "mlserver": "MLServer",
}


@dataclass(frozen=True)
class Command:
    arguments: list[str]
    http_port: int
    grpc_port: int = 0
    directory: Path = ROOT
    variables: dict[str, str] = field(default_factory=dict)

    def port(self, wire: Wire) -> int:
        return self.grpc_port if wire == "v2-grpc" else self.http_port


def install(server: str, out: Path) -> Path:
    """The Python that runs the server, or Triton's folder. Raises `Uninstallable`."""
    match server:
        case "litserve":
            return environment(out / "venv")
        case "mlserver":
            requirements = HERE / "requirements-mlserver.txt"
            return environment(out / "venv-mlserver", requirements, apart=True)
        case "triton":
            try:
                return peer.install()
            except peer.Unobtainable as error:
                # What pip said follows a colon.
                raise Uninstallable(str(error).partition(": ")[0]) from error
        case _:
            return Path(sys.executable)


def command(
    server: str, home: Path, network: Network, graph: Path, threads: int, out: Path
) -> Command:
    """Write what the server reads below `out`, and how it is started. `home` is `install`'s."""
    http_port, grpc_port = free_port(), free_port()
    if server == "slipway":
        repository = _repository(out, network, graph, threads, 'backend: "onnxruntime"')
        arguments = slipway(repository, network.name, http_port, grpc_port)
        return Command(arguments, http_port, grpc_port)
    if server == "triton":
        repository = _repository(out, network, graph, threads, 'backend: "python"')
        model = HERE / "servers/triton_wire.py"
        shutil.copy(model, repository / network.name / "1/model.py")
        arguments = peer.command(home, repository, http_port, grpc_port)
        return Command(arguments, http_port, grpc_port, home, peer.variables(home))
    variables = {"PYTHONPATH": f"{HERE}:{HERE / 'servers'}"}
    if server == "mlserver":
        _write_mlserver(out, network, graph, threads, http_port, grpc_port)
        # Not by its program, whose first line is a path that may have become too long.
        run = "from mlserver.cli import main; main()"
        arguments = [str(home), "-c", run, "start", str(out)]
        return Command(arguments, http_port, grpc_port, ROOT, variables)
    arguments = [str(home), str(HERE / f"servers/{server}_wire.py"), "--graph", str(graph)]
    arguments += ["--threads", str(threads), "--port", str(http_port)]
    if server == "grpcio":
        return Command(arguments, http_port, grpc_port=http_port, variables=variables)
    arguments += ["--shape", *map(str, network.shape)]
    if server == "litserve":
        arguments += ["--max-batch-size", str(MAX_BATCH)]
    return Command(arguments, http_port, variables=variables)


def _repository(out: Path, network: Network, graph: Path, threads: int, backend: str) -> Path:
    version = out / network.name / "1"
    version.mkdir(parents=True, exist_ok=True)
    shutil.copy(graph, version / "model.onnx")
    path = ":".join([str(HERE), *(each for each in sys.path if each.endswith("site-packages"))])
    python_path = f'parameters {{ key: "python_path" value {{ string_value: "{path}" }} }}'
    (version.parent / "config.pbtxt").write_text(f"""{backend}
max_batch_size: {MAX_BATCH}
input [ {{ name: "x" data_type: TYPE_FP32 dims: {list(network.shape)} }} ]
output [ {{ name: "y" data_type: TYPE_FP32 dims: [ {network.classes} ] }} ]
dynamic_batching {{ }}
instance_group [ {{ kind: KIND_CPU count: 1 }} ]
parameters {{ key: "intra_op_thread_count" value {{ string_value: "{threads}" }} }}
{python_path if "python" in backend else ""}
""")
    return out


def _write_mlserver(
    out: Path, network: Network, graph: Path, threads: int, http_port: int, grpc_port: int
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    settings = {
        "host": "127.0.0.1",
        "http_port": http_port,
        "grpc_port": grpc_port,
        "metrics_port": free_port(),
        "debug": False,
    }
    (out / "settings.json").write_text(json.dumps(settings))
    model = {
        "name": network.name,
        "implementation": "mlserver_wire.Network",
        "max_batch_size": MAX_BATCH,
        # Zero would switch batching off.
        "max_batch_time": 0.001,
        "parameters": {"uri": str(graph), "extra": {"threads": threads}},
    }
    (out / "model-settings.json").write_text(json.dumps(model))

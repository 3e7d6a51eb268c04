"""The ONNX Runtime engine with small real graphs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from tritonclient.grpc import model_config_pb2

from serving.config import Accelerator, InstanceGroup, InstanceKind, ModelConfig, VersionPolicy
from serving.engines.onnx import OnnxEngine, load
from serving.errors import InvalidRequest, ModelLoadError
from serving.types import NUMPY_TYPES, Array, TensorSpec
from tests.support import ONNX_TYPES, sample

TYPES = {**ONNX_TYPES, "BF16": TensorProto.BFLOAT16}

CPU = InstanceGroup(InstanceKind.CPU)


def value(name: str, datatype: str, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TYPES[datatype], shape)


def save(
    directory: Path,
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    initializers: Sequence[onnx.TensorProto] = (),
) -> Path:
    """A version directory with this graph."""
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(initializers))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    version = directory / "m" / "1"
    version.mkdir(parents=True)
    onnx.save(model, version / "model.onnx")
    return version


def identity(directory: Path, datatype: str, shape: Sequence[int | str] = ("n", "m")) -> Path:
    return save(
        directory,
        [helper.make_node("Identity", ["x"], ["y"])],
        [value("x", datatype, shape)],
        [value("y", datatype, shape)],
    )


def open_engine(version: Path, **settings: Any) -> OnnxEngine:
    base = ModelConfig(
        name="m",
        backend="onnxruntime",
        platform="",
        max_batch_size=0,
        inputs=(),
        outputs=(),
        version_policy=VersionPolicy(),
        model_filename="model.onnx",
        message=model_config_pb2.ModelConfig(),
        instance_groups=(CPU,),
    )
    return load(replace(base, **settings), version)


async def run(version: Path, **inputs: Array) -> dict[str, Array]:
    engine = open_engine(version)
    try:
        return await engine.infer(inputs)
    finally:
        await engine.close()


@pytest.mark.parametrize("shape", [(), (0, 3), (2, 0), (2, 3)])
@pytest.mark.parametrize("datatype", [name for name in NUMPY_TYPES if name != "BF16"])
async def test_every_type_passes_whole(
    tmp_path: Path, datatype: str, shape: tuple[int, ...]
) -> None:
    version = identity(tmp_path, datatype, ["n", "m"][: len(shape)])
    tensor = sample(datatype, (6,)).ravel()[: int(np.prod(shape))].reshape(shape)
    result = (await run(version, x=tensor))["y"]
    assert (result.dtype, result.shape) == (tensor.dtype, shape)
    assert result.tolist() == tensor.tolist()


@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
async def test_bf16_passes_in_and_out(tmp_path: Path, shape: tuple[int, ...]) -> None:
    dims = ["n", "m"][: len(shape)]
    version = save(
        tmp_path,
        [
            helper.make_node("Identity", ["x"], ["same"]),
            helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT),
            helper.make_node("Cast", ["w"], ["narrow"], to=TensorProto.BFLOAT16),
        ],
        [value("x", "BF16", dims), value("w", "FP32", dims)],
        [value("same", "BF16", dims), value("wide", "FP32", dims), value("narrow", "BF16", dims)],
    )
    wide = (np.arange(np.prod(shape)) + 0.5).reshape(shape).astype(np.float32)
    narrow = wide.astype(NUMPY_TYPES["BF16"])
    outputs = await run(version, x=narrow, w=wide)
    assert list(outputs) == ["same", "wide", "narrow"]
    for name, expected in {"same": narrow, "wide": wide, "narrow": narrow}.items():
        assert (outputs[name].dtype, outputs[name].shape) == (expected.dtype, shape)
        assert outputs[name].tolist() == expected.tolist()


async def test_a_bf16_view_is_not_read_as_if_it_lay_in_a_row(tmp_path: Path) -> None:
    tensor = np.arange(12, dtype=np.float32).astype(NUMPY_TYPES["BF16"]).reshape(3, 4)[:, ::2]
    assert (await run(identity(tmp_path, "BF16"), x=tensor))["y"].tolist() == tensor.tolist()


async def test_bf16_outputs_stay_when_the_engine_runs_again(tmp_path: Path) -> None:
    engine = open_engine(identity(tmp_path, "BF16"))
    ones = np.ones((64, 64), NUMPY_TYPES["BF16"])
    first = (await engine.infer({"x": ones}))["y"]
    for _ in range(10):
        await engine.infer({"x": ones * 0})
    assert first.tolist() == ones.tolist()
    await engine.close()


async def test_strings_and_bf16_together(tmp_path: Path) -> None:
    mixed = save(
        tmp_path / "in",
        [
            helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT),
            helper.make_node("Identity", ["s"], ["t"]),
        ],
        [value("x", "BF16", ["n"]), value("s", "BYTES", ["n"])],
        [value("y", "FP32", ["n"]), value("t", "BYTES", ["n"])],
    )
    outputs = await run(mixed, x=np.ones(1, NUMPY_TYPES["BF16"]), s=np.array([b"a"], object))
    assert outputs["y"].tolist() == [1.0]
    assert outputs["t"].tolist() == [b"a"]
    returned = save(
        tmp_path / "out",
        [
            helper.make_node("Identity", ["x"], ["y"]),
            helper.make_node("Cast", ["x"], ["t"], to=TensorProto.STRING),
        ],
        [value("x", "BF16", ["n"])],
        [value("y", "BF16", ["n"]), value("t", "BYTES", ["n"])],
    )
    outputs = await run(returned, x=np.array([2.5], NUMPY_TYPES["BF16"]))
    assert outputs["y"].tolist() == [2.5]
    assert outputs["t"].tolist() == [b"2.5"]
    impossible = save(
        tmp_path / "both",
        [
            helper.make_node("Identity", ["x"], ["y"]),
            helper.make_node("Identity", ["s"], ["t"]),
        ],
        [value("x", "BF16", ["n"]), value("s", "BYTES", ["n"])],
        [value("y", "BF16", ["n"]), value("t", "BYTES", ["n"])],
    )
    with pytest.raises(ModelLoadError, match="takes strings and returns BF16"):
        open_engine(impossible)


async def test_strings_stay_whole(tmp_path: Path) -> None:
    words = [[b"a\0b", b"", b"\0"], [b"end\0\0", "größe".encode(), b"\n"]]
    tensor = np.empty((2, 3), object)
    tensor[:] = words
    assert (await run(identity(tmp_path, "BYTES"), x=tensor))["y"].tolist() == words


async def test_strings_that_are_no_text_are_the_callers_fault(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="'x' has an element that is not UTF-8"):
        await run(identity(tmp_path, "BYTES"), x=np.array([[b"\xff"]], object))


async def test_an_initializer_that_is_also_an_input_may_be_left_out(tmp_path: Path) -> None:
    version = save(
        tmp_path,
        [helper.make_node("Add", ["x", "w"], ["y"])],
        [value("x", "FP32", ["n"]), value("w", "FP32", [1])],
        [value("y", "FP32", ["n"])],
        [helper.make_tensor("w", TensorProto.FLOAT, [1], [10])],
    )
    engine = open_engine(version)
    assert engine.inputs == [
        TensorSpec("x", "FP32", (-1,)),
        TensorSpec("w", "FP32", (1,), optional=True),
    ]
    x, w = np.ones(2, np.float32), np.full(1, 5, np.float32)
    assert (await engine.infer({"x": x}))["y"].tolist() == [11, 11]
    assert (await engine.infer({"w": w, "x": x}))["y"].tolist() == [6, 6]
    await engine.close()


def test_sequences_and_maps_are_refused(tmp_path: Path) -> None:
    version = save(
        tmp_path,
        [helper.make_node("SequenceConstruct", ["x"], ["y"])],
        [value("x", "FP32", ["n"])],
        [helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, ["n"])],
    )
    with pytest.raises(ModelLoadError, match=r"'y' has the type seq\(tensor\(float\)\), and only"):
        open_engine(version)


def test_a_directory_may_hold_the_graph(tmp_path: Path) -> None:
    version = identity(tmp_path, "FP32")
    (version / "graph").mkdir()
    (version / "model.onnx").rename(version / "graph" / "model.onnx")
    open_engine(version, model_filename="graph")
    with pytest.raises(ModelLoadError, match="no such file"):
        open_engine(version)


# Instances


async def test_instances_of_one_device_run_at_once_and_share_a_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    everybody = threading.Barrier(5)

    class Session(ort.InferenceSession):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            opened.append(self)

        def run(self, *arguments: Any) -> Any:
            everybody.wait(10)
            return super().run(*arguments)

    monkeypatch.setattr(ort, "InferenceSession", Session)
    groups = (
        InstanceGroup(InstanceKind.CPU, count=2),
        InstanceGroup(InstanceKind.AUTO, count=1, gpus=(0, 1)),
        InstanceGroup(InstanceKind.CPU, count=1),
    )
    engine = open_engine(identity(tmp_path, "FP32"), instance_groups=groups)
    inputs = [{"x": np.full((1, 1), i, np.float32)} for i in range(10)]
    outputs = await asyncio.gather(*(engine.infer(each) for each in inputs))
    assert [output["y"].item() for output in outputs] == list(range(10))
    assert len(opened) == 1
    await engine.close()


@pytest.mark.skipif(
    "CUDAExecutionProvider" in ort.get_available_providers(), reason="this machine has CUDA"
)
def test_a_gpu_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    group = InstanceGroup(InstanceKind.GPU, gpus=(0,))
    with pytest.raises(ModelLoadError, match="asks for KIND_GPU, and ONNX Runtime finds no usable"):
        open_engine(identity(tmp_path, "FP32"), instance_groups=(CPU, group))


# Settings


@pytest.mark.parametrize(
    "parameters",
    [
        {"intra_op_thread_count": "1", "inter_op_thread_count": "2", "execution_mode": "1"},
        {"enable_mem_arena": "0", "enable_mem_pattern": "false"},
        {"enable_mem_arena": "TRUE", "share_session_between_instances": "true"},
        {"memory.enable_memory_arena_shrinkage": "cpu:0"},
        {"memory.enable_memory_arena_shrinkage": "cpu:0;gpu:0", "enable_mem_arena": "0"},
        {"session.use_device_allocator_for_initializers": "1"},
        {"session.intra_op.allow_spinning": "1"},
        {"gpu_mem_limit": "18446744073709551615", "cudnn_conv_algo_search": "1"},
        {"my_own_key": "anything"},
    ],
)
async def test_settings_are_taken(tmp_path: Path, parameters: dict[str, str]) -> None:
    engine = open_engine(identity(tmp_path, "FP32"), parameters=parameters)
    tensor = np.ones((2, 2), np.float32)
    assert (await engine.infer({"x": tensor}))["y"].tolist() == tensor.tolist()
    await engine.close()


def test_settings_reach_the_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[ort.SessionOptions] = []
    real = ort.InferenceSession

    def opened(path: Path, options: ort.SessionOptions, **rest: Any) -> ort.InferenceSession:
        seen.append(options)
        return real(path, options, **rest)

    monkeypatch.setattr(ort, "InferenceSession", opened)
    version = identity(tmp_path, "FP32")
    open_engine(version)
    parameters = {
        "intra_op_thread_count": "3",
        "inter_op_thread_count": "2",
        "execution_mode": "1",
        "enable_mem_arena": "0",
        "session.intra_op.allow_spinning": "1",
    }
    open_engine(version, parameters=parameters, graph_level=2)
    default, given = seen
    assert (default.intra_op_num_threads, given.intra_op_num_threads) == (0, 3)
    assert (default.inter_op_num_threads, given.inter_op_num_threads) == (0, 2)
    assert default.execution_mode == ort.ExecutionMode.ORT_SEQUENTIAL
    assert given.execution_mode == ort.ExecutionMode.ORT_PARALLEL
    assert (default.enable_cpu_mem_arena, given.enable_cpu_mem_arena) == (True, False)
    spinning = "session.intra_op.allow_spinning"
    assert default.get_session_config_entry(spinning) == "0"
    assert given.get_session_config_entry(spinning) == "1"
    assert default.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    assert given.graph_optimization_level == ort.GraphOptimizationLevel.ORT_DISABLE_ALL


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"parameters": {"intra_op_thread_count": "-1"}}, "intra_op_thread_count must be a whole"),
        ({"parameters": {"inter_op_thread_count": "two"}}, "must be a whole .* got 'two'"),
        ({"parameters": {"execution_mode": "2"}}, "execution_mode must be one of 0, 1, got '2'"),
        ({"parameters": {"enable_mem_arena": "yes"}}, "enable_mem_arena must be one of 0, false"),
        (
            {"parameters": {"memory.enable_memory_arena_shrinkage": "cpu"}},
            "memory.enable_memory_arena_shrinkage must be a list like",
        ),
        ({"parameters": {"cudnn_conv_algo_search": "3"}}, "must be one of 0, 1, 2, got '3'"),
        ({"graph_level": 7}, r"optimization\.graph\.level must be -1, 0, 1 or 2"),
        ({"decoupled": True}, "model_transaction_policy.decoupled needs another backend"),
        ({"accelerators": (Accelerator("auto_io", {}),)}, "'auto_io' is not supported"),
    ],
)
def test_bad_settings_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelLoadError, match=f"m/config.pbtxt: .*{message}"):
        open_engine(identity(tmp_path, "FP32"), **settings)


@pytest.mark.parametrize("name", ["tensorrt", "cuda", "openvino"])
def test_an_accelerator_that_is_not_there_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    message = f"'{name}' needs the .*ExecutionProvider, which this ONNX Runtime does not have"
    with pytest.raises(ModelLoadError, match=message):
        open_engine(identity(tmp_path, "FP32"), accelerators=(Accelerator(name, {}),))


# ONNX Runtime for CPUs has none of the GPU's providers, so what it is asked for is looked at.
class _Asked:
    """Stands for a session of an ONNX Runtime that has what `usable` names."""

    asked: list[list[tuple[str, dict[str, str]]]] = []  # noqa: RUF012
    usable: frozenset[str] = frozenset()

    def __init__(
        self,
        path: Path,
        options: Any,
        *,
        providers: Any,
        enable_fallback: int,
        disabled_optimizers: list[str],
    ):
        assert not enable_fallback
        gpus = ("CUDAExecutionProvider", "TensorrtExecutionProvider")
        assert bool(disabled_optimizers) != any(name in gpus for name, _ in providers)
        self._providers = [name for name, _ in providers if name in self.usable]
        self.asked.append(providers)

    def get_providers(self) -> list[str]:
        return self._providers

    def get_inputs(self) -> list[Any]:
        return []

    get_outputs = get_overridable_initializers = get_inputs


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> type[_Asked]:
    providers = ["Tensorrt", "CUDA", "OpenVINO", "CPU"]
    names = [f"{provider}ExecutionProvider" for provider in providers]
    monkeypatch.setattr(_Asked, "asked", [])
    monkeypatch.setattr(_Asked, "usable", frozenset(names))
    monkeypatch.setattr(ort, "InferenceSession", _Asked)
    monkeypatch.setattr(ort, "get_available_providers", lambda: names)
    monkeypatch.setattr(ort, "preload_dlls", lambda: None, raising=False)
    return _Asked


def test_every_device_is_asked_for_once(tmp_path: Path, asked: type[_Asked]) -> None:
    groups = (
        InstanceGroup(InstanceKind.GPU, count=2, gpus=(0, 1)),
        InstanceGroup(InstanceKind.AUTO, count=3),
        InstanceGroup(InstanceKind.CPU),
    )
    open_engine(identity(tmp_path, "FP32"), instance_groups=groups)
    cpu: tuple[str, dict[str, str]] = ("CPUExecutionProvider", {})
    assert asked.asked == [
        [("CUDAExecutionProvider", {"device_id": "0"}), cpu],
        [("CUDAExecutionProvider", {"device_id": "1"}), cpu],
        [cpu],
    ]


def test_accelerators_get_their_parameters(tmp_path: Path, asked: type[_Asked]) -> None:
    tensorrt = {
        "precision_mode": "FP16",
        "max_workspace_size_bytes": "1024",
        "trt_engine_cache_enable": "1",
    }
    open_engine(
        identity(tmp_path, "FP32"),
        instance_groups=(InstanceGroup(InstanceKind.GPU, gpus=(1,)),),
        accelerators=(
            Accelerator("cuda", {"use_ep_level_unified_stream": "1"}),
            Accelerator("openvino", {}),
            Accelerator("tensorrt", tensorrt),
        ),
        parameters={"cudnn_conv_algo_search": "2", "gpu_mem_limit": "99"},
    )
    [[first, second, third, last]] = asked.asked
    assert first == (
        "TensorrtExecutionProvider",
        {
            "trt_fp16_enable": "1",
            "trt_max_workspace_size": "1024",
            "trt_engine_cache_enable": "1",
            "device_id": "1",
        },
    )
    assert second == (
        "CUDAExecutionProvider",
        {
            "cudnn_conv_algo_search": "DEFAULT",
            "gpu_mem_limit": "99",
            "use_ep_level_unified_stream": "1",
            "device_id": "1",
        },
    )
    assert third == ("OpenVINOExecutionProvider", {"device_type": "CPU"})
    assert last == ("CPUExecutionProvider", {})


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"precision_mode": "FP8"}, "precision_mode must be one of FP32, .* got 'FP8'"),
        ({"speed": "high"}, "has the unknown parameter 'speed'"),
    ],
)
def test_bad_parameters_of_tensorrt_are_refused(
    tmp_path: Path, asked: type[_Asked], parameters: dict[str, str], message: str
) -> None:
    with pytest.raises(ModelLoadError, match=message):
        open_engine(identity(tmp_path, "FP32"), accelerators=(Accelerator("tensorrt", parameters),))


def test_a_provider_that_onnx_runtime_drops_is_an_error(
    tmp_path: Path, asked: type[_Asked], monkeypatch: pytest.MonkeyPatch
) -> None:
    version = identity(tmp_path, "FP32")
    accelerators = (Accelerator("tensorrt", {}),)
    for kind in (InstanceKind.AUTO, InstanceKind.GPU):
        monkeypatch.setattr(asked, "usable", frozenset(["CUDAExecutionProvider"]))
        with pytest.raises(ModelLoadError, match="cannot use TensorrtExecutionProvider"):
            open_engine(version, instance_groups=(InstanceGroup(kind),), accelerators=accelerators)
    monkeypatch.setattr(asked, "usable", frozenset(["CPUExecutionProvider"]))
    with pytest.raises(ModelLoadError, match="finds no usable CUDA"):
        open_engine(version, instance_groups=(InstanceGroup(InstanceKind.GPU),))
    open_engine(version, instance_groups=(InstanceGroup(InstanceKind.AUTO),))

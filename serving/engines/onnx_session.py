"""Sessions of ONNX Runtime, opened as `config.pbtxt` says.

The settings are those of Triton's ONNX Runtime backend. `parameters` in `config.pbtxt`:

- `intra_op_thread_count`, `inter_op_thread_count`: threads within and across operators, per
  device; 0 (the default) lets ONNX Runtime choose. Only `execution_mode` 1 has use for the latter;
- `execution_mode`: 0 runs operators one after the other (the default), 1 in parallel;
- `enable_mem_arena`, `enable_mem_pattern`: on (the default) or off;
- `memory.enable_memory_arena_shrinkage`: devices whose arena gives memory back after every run,
  for example `cpu:0;gpu:0`;
- `session.…`: any session option of ONNX Runtime, under its own name;
- `cudnn_conv_algo_search`, `gpu_mem_limit`, `arena_extend_strategy`, `do_copy_in_default_stream`:
  the old way to give options of CUDA; the new one is the accelerator `cuda`.

`optimization.graph.level`: -1 is basic optimisations only, 1 adds extended ones, 2 is none at all.
`optimization.execution_accelerators`: `tensorrt` and `cuda` of a GPU, `openvino` of the CPU, each
with its parameters. `share_session_between_instances` changes nothing: the instances on one device
always share a session, and thereby the weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import onnxruntime as ort

from serving.config import Accelerator, InstanceKind, ModelConfig
from serving.errors import ModelLoadError

_CPU = "CPUExecutionProvider"
_CUDA = "CUDAExecutionProvider"
_PROVIDERS = {
    "tensorrt": "TensorrtExecutionProvider",
    "cuda": _CUDA,
    "openvino": "OpenVINOExecutionProvider",
}
_GRAPH_LEVELS = {
    0: ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    -1: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    1: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}

_SLOW_ON_CPU = "SkipLayerNormFusion"
"""Of ONNX Runtime's optimisations: on the CPU the fused operator is slower than the addition
and the normalisation that it replaces."""

T = TypeVar("T")


class Session:
    """ONNX Runtime's session, and what it wants to be told at every run."""

    def __init__(self, session: ort.InferenceSession, shrink: str):
        self.session = session
        self._options = None
        if shrink:
            self._options = ort.RunOptions()
            self._options.add_run_config_entry("memory.enable_memory_arena_shrinkage", shrink)

    def run(
        self, output_names: list[str], feed: Mapping[str, Any], *, as_ort_values: bool
    ) -> list[Any]:
        """`feed` holds arrays and `OrtValue`s; the outputs are either all of the one or the other.

        Only `OrtValue`s can carry BF16 outputs, and no `OrtValue` can be made of strings.
        """
        if not as_ort_values:
            values: list[Any] = self.session.run(output_names, feed, self._options)
            return values
        feed = {
            name: value
            if isinstance(value, ort.OrtValue)
            else ort.OrtValue.ortvalue_from_numpy(value)
            for name, value in feed.items()
        }
        values = self.session.run_with_ort_values(output_names, feed, self._options)
        return values


def open_sessions(path: Path, config: ModelConfig, settings: SessionSettings) -> list[Session]:
    """One entry for each instance."""
    opened: dict[int | None, Session] = {}

    def on(gpu: int | None) -> Session:
        if gpu not in opened:
            opened[gpu] = settings.open(path, gpu)
        return opened[gpu]

    instances = []
    for group in config.instance_groups:
        for gpu in group.gpus or (0,):
            if group.kind is InstanceKind.CPU:
                session = on(None)
            elif group.kind is InstanceKind.GPU or settings.needs_gpu:
                session = on(gpu)
            else:
                try:
                    session = on(gpu)
                except ModelLoadError:
                    session = on(None)
            instances += [session] * group.count
    return instances


_SWITCH = {"0": False, "false": False, "1": True, "true": True}
_CUDA_CHOICES = {
    "cudnn_conv_algo_search": {"0": "EXHAUSTIVE", "1": "HEURISTIC", "2": "DEFAULT"},
    "arena_extend_strategy": {"0": "kNextPowerOfTwo", "1": "kSameAsRequested"},
    "do_copy_in_default_stream": {"0": "0", "1": "1"},
}
_TENSORRT_PRECISIONS = {
    "FP32": {},
    "FP16": {"trt_fp16_enable": "1"},
    "BF16": {"trt_bf16_enable": "1"},
    "INT8": {"trt_int8_enable": "1"},
}
# Those that Triton names otherwise than ONNX Runtime.
_TENSORRT_NAMES = {
    "max_workspace_size_bytes": "trt_max_workspace_size",
    "int8_calibration_table_name": "trt_int8_calibration_table_name",
    "int8_use_native_calibration_table": "trt_int8_use_native_calibration_table",
}


class SessionSettings:
    """What the config says about sessions, checked.

    Raises `ModelLoadError`, naming the setting, for a value that Triton's backend does not know and
    for an accelerator that this ONNX Runtime does not have.
    """

    def __init__(
        self,
        where: str,
        parameters: Mapping[str, str] = MappingProxyType({}),
        graph_level: int = 0,
        accelerators: Sequence[Accelerator] = (),
    ):
        self._where = where
        self._parameters = parameters
        self._intra_threads = self._count("intra_op_thread_count") or 0
        self._inter_threads = self._count("inter_op_thread_count") or 0
        self._parallel = self._choice("execution_mode", {"0": False, "1": True}) or False
        self._arena = self._choice("enable_mem_arena", _SWITCH) is not False
        self._pattern = self._choice("enable_mem_pattern", _SWITCH) is not False
        shrink = parameters.get("memory.enable_memory_arena_shrinkage", "")
        if not re.fullmatch(r"((cpu|gpu):\d+(;|$))*", shrink):
            raise self._wrong(
                "memory.enable_memory_arena_shrinkage", "a list like 'cpu:0;gpu:0'", shrink
            )
        self._shrink = [device for device in shrink.split(";") if device]
        # Threads that spin between runs take the core from the fronts: 5 to 10 % of throughput.
        self._entries = {"session.intra_op.allow_spinning": "0"}
        for key, value in parameters.items():
            if key.startswith("session."):
                self._entries[key] = value
        if graph_level not in _GRAPH_LEVELS:
            raise self.error("optimization.graph.level", "must be -1, 0, 1 or 2")
        self._graph_level = _GRAPH_LEVELS[graph_level]
        self._accelerators = {each.name: self._checked(each) for each in accelerators}
        self.needs_gpu = not self._accelerators.keys().isdisjoint({"tensorrt", "cuda"})
        self._cuda = self._cuda_options() | self._accelerators.get("cuda", {})

    def error(self, name: str, problem: str) -> ModelLoadError:
        return ModelLoadError(f"{self._where}: {name} {problem}")

    def open(self, path: Path, gpu: int | None) -> Session:
        """A session on one GPU, or on the CPU.

        Raises `ModelLoadError` for a graph that does not load and for a device that is not there.
        """
        if gpu is not None and _CUDA not in ort.get_available_providers():
            raise self._no_cuda(path)
        wanted = self._providers(gpu)
        try:
            # ONNX Runtime would go on without what fails, and without a word to our log.
            session = ort.InferenceSession(
                path,
                self._options(),
                providers=[*wanted.items(), (_CPU, {})],
                enable_fallback=0,
                disabled_optimizers=[_SLOW_ON_CPU] if gpu is None else [],
            )
        except Exception as error:  # ONNX Runtime's errors share no narrower base
            raise ModelLoadError(f"{path}: ONNX Runtime cannot load it: {error}") from error
        missing = wanted.keys() - session.get_providers()
        if _CUDA in missing:
            raise self._no_cuda(path)
        if missing:
            raise ModelLoadError(f"{path}: ONNX Runtime cannot use {', '.join(sorted(missing))}")
        return Session(session, self._shrunk(gpu))

    def _no_cuda(self, path: Path) -> ModelLoadError:
        return ModelLoadError(
            f"{path}: config.pbtxt asks for KIND_GPU, and ONNX Runtime finds no usable CUDA here"
        )

    def _options(self) -> ort.SessionOptions:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = self._intra_threads
        options.inter_op_num_threads = self._inter_threads
        if self._parallel:
            options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
        options.enable_cpu_mem_arena = self._arena
        options.enable_mem_pattern = self._pattern
        options.graph_optimization_level = self._graph_level
        for key, value in self._entries.items():
            options.add_session_config_entry(key, value)
        return options

    def _providers(self, gpu: int | None) -> dict[str, dict[str, str]]:
        """Options of every execution provider that must be there, the preferred first."""
        providers = {}
        if gpu is not None:
            # CUDA's libraries may have come as Python packages, where no loader looks for them.
            ort.preload_dlls()
            device = {"device_id": str(gpu)}
            if "tensorrt" in self._accelerators:
                providers[_PROVIDERS["tensorrt"]] = self._accelerators["tensorrt"] | device
            providers[_CUDA] = self._cuda | device
        if "openvino" in self._accelerators:
            providers[_PROVIDERS["openvino"]] = {
                "device_type": "CPU",
                **self._accelerators["openvino"],
            }
        return providers

    def _shrunk(self, gpu: int | None) -> str:
        """The arenas to shrink of those that a session has: it refuses to run for any other."""
        arenas = {f"gpu:{gpu}"} | ({"cpu:0"} if self._arena else set())
        return ";".join(device for device in self._shrink if device in arenas)

    def _checked(self, accelerator: Accelerator) -> dict[str, str]:
        """Its parameters, as ONNX Runtime names them."""
        where = f"optimization.execution_accelerators {accelerator.name!r}"
        provider = _PROVIDERS.get(accelerator.name)
        if provider is None:
            raise self.error(where, f"is not supported; expected one of {', '.join(_PROVIDERS)}")
        if provider not in ort.get_available_providers():
            raise self.error(where, f"needs the {provider}, which this ONNX Runtime does not have")
        if accelerator.name != "tensorrt":
            return dict(accelerator.parameters)
        options: dict[str, str] = {}
        for key, value in accelerator.parameters.items():
            if key == "precision_mode":
                if value not in _TENSORRT_PRECISIONS:
                    raise self.error(
                        f"{where} precision_mode",
                        f"must be one of {', '.join(_TENSORRT_PRECISIONS)}, got {value!r}",
                    )
                options |= _TENSORRT_PRECISIONS[value]
            elif key in _TENSORRT_NAMES or key.startswith("trt_"):
                options[_TENSORRT_NAMES.get(key, key)] = value
            else:
                raise self.error(where, f"has the unknown parameter {key!r}")
        return options

    def _cuda_options(self) -> dict[str, str]:
        options = {}
        for key, choices in _CUDA_CHOICES.items():
            choice = self._choice(key, choices)
            if choice is not None:
                options[key] = choice
        limit = self._count("gpu_mem_limit")
        if limit is not None:
            options["gpu_mem_limit"] = str(limit)
        return options

    def _count(self, key: str) -> int | None:
        text = self._parameters.get(key)
        if text is None:
            return None
        if not re.fullmatch(r"[0-9]{1,20}", text):
            raise self._wrong(key, "a whole number of 0 or more", text)
        return int(text)

    def _choice(self, key: str, choices: Mapping[str, T]) -> T | None:
        text = self._parameters.get(key)
        if text is None:
            return None
        if text.lower() not in choices:
            raise self._wrong(key, f"one of {', '.join(choices)}", text)
        return choices[text.lower()]

    def _wrong(self, key: str, expected: str, text: str) -> ModelLoadError:
        return self.error("parameters", f"{key} must be {expected}, got {text!r}")

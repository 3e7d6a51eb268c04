"""What the gRPC front has besides inference, asked with unmodified clients and raw stubs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from multiprocessing.shared_memory import SharedMemory as SharedObject
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from serving.fronts.restricted import GROUPS as RESTRICTABLE
from serving.fronts.v2_grpc import CHANGES, GROUPS, HEALTH, INFERENCE
from tests.support import RunningServer, await_true, config, serving, write_config, write_fake

HealthState = health_pb2.HealthCheckResponse


@pytest.fixture(scope="module", params=["native", "grpcio"])
def front(request: pytest.FixtureRequest) -> str:
    """Each has the same conversations."""
    return str(request.param)


@pytest.fixture(scope="module")
def explicit(tmp_path_factory: pytest.TempPathFactory, front: str) -> Iterator[RunningServer]:
    """A server that loads and unloads on request, with shared memory."""
    repository = tmp_path_factory.mktemp("explicit")
    write_fake(repository, "echo")
    write_fake(repository, "spare")
    (write_config(repository, "broken", config()) / "1").mkdir()
    options = ["--model-control-mode", "explicit", "--load-model", "echo", "--grpc-front", front]
    with serving(repository, *options, "--allow-client-shm", "true", "--id", "named") as running:
        yield running


@pytest.fixture
def client(explicit: RunningServer) -> Iterator[Any]:
    with tritonclient.grpc.InferenceServerClient(explicit.grpc) as connected:
        yield connected


@pytest.fixture
def stub(explicit: RunningServer) -> Iterator[Any]:
    with grpc.insecure_channel(explicit.grpc) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def refused(call: Any, *arguments: Any, **options: Any) -> tuple[str, str]:
    """Status and message of a call that must fail, by stub or client."""
    with pytest.raises((grpc.RpcError, InferenceServerException)) as refusal:
        call(*arguments, **options)
    error: Any = refusal.value
    if isinstance(error, InferenceServerException):
        return error.status().removeprefix("StatusCode."), error.message()
    return error.code().name, error.details()


def ones(rows: int = 1) -> Any:
    x = tritonclient.grpc.InferInput("x", [rows, 4], "FP32")
    x.set_data_from_numpy(np.ones((rows, 4), np.float32))
    return x


def test_every_rpc_has_a_group() -> None:
    rpcs = {method.name for service in (INFERENCE, HEALTH) for method in service.methods}
    assert rpcs == set(GROUPS)
    assert set(GROUPS.values()) == set(RESTRICTABLE)
    assert rpcs >= CHANGES


def test_metadata_and_config(client: Any) -> None:
    metadata = client.get_server_metadata()
    assert metadata.name == "named"
    assert "model_repository" in metadata.extensions
    assert client.get_model_metadata("echo", as_json=True) == {
        "name": "echo",
        "versions": ["1"],
        "platform": "fake",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": ["-1", "4"]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": ["-1", "4"]}],
    }
    assert client.get_model_config("echo").config.max_batch_size == 64


@pytest.mark.parametrize("method", ["is_model_ready", "get_model_metadata", "get_model_config"])
def test_versions_that_can_be_none(client: Any, method: str) -> None:
    status, message = refused(getattr(client, method), "echo", "one")
    assert status == "INVALID_ARGUMENT"
    assert "failed to get model version from specified version string 'one'" in message


def test_statistics(client: Any) -> None:
    before = client.get_inference_statistics("echo").model_stats[0]
    client.infer("echo", [ones(rows=3)])
    after = client.get_inference_statistics("echo").model_stats[0]
    assert (after.name, after.version) == ("echo", "1")
    assert after.inference_count == before.inference_count + 3
    assert after.inference_stats.success.count == before.inference_stats.success.count + 1
    assert after.inference_stats.compute_infer.ns > before.inference_stats.compute_infer.ns
    assert any(batch.batch_size == 3 for batch in after.batch_stats)
    assert len(client.get_inference_statistics().model_stats) >= 1
    status, message = refused(client.get_inference_statistics, "nobody")
    assert status == "INVALID_ARGUMENT"
    assert "requested model 'nobody' is not available" in message


def state(client: Any, model: str) -> tuple[str, str]:
    [found] = [entry for entry in client.get_model_repository_index().models if entry.name == model]
    return found.state, found.reason


def test_load_and_unload(client: Any, stub: Any) -> None:
    assert state(client, "spare") == ("", "")
    client.load_model("spare")
    assert client.is_model_ready("spare")
    assert state(client, "spare") == ("READY", "")
    ready = stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(ready=True)).models
    assert {model.name for model in ready} == {"echo", "spare"}
    client.unload_model("spare", unload_dependents=True)
    await_true(lambda: state(client, "spare") == ("UNAVAILABLE", "unloaded"))
    assert not client.is_model_ready("spare")
    client.unload_model("nobody")


def test_a_load_that_brings_its_own_config_and_files(client: Any) -> None:
    override = {
        "backend": "fake",
        "max_batch_size": "16",
        "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": ["4"]}],
        "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": ["4"]}],
    }
    client.load_model("spare", config=json.dumps(override))
    assert client.get_model_config("spare").config.max_batch_size == 16
    client.load_model("mine", config=json.dumps(override), files={"file:7/anything": b"\0\xff"})
    assert client.is_model_ready("mine", "7")
    client.unload_model("mine")
    client.unload_model("spare")


def test_loads_that_fail_say_why(client: Any) -> None:
    status, message = refused(client.load_model, "nobody")
    assert status == "INTERNAL"
    assert "failed to load 'nobody', failed to poll from model repository" in message
    status, message = refused(client.load_model, "broken")
    assert status == "INVALID_ARGUMENT"
    assert "load failed for model 'broken': version 1 is at UNAVAILABLE state: " in message
    assert "model.onnx" in message
    assert refused(client.load_model, "../echo")[0] == "INVALID_ARGUMENT"
    client.unload_model("broken")
    client.unload_model("nobody")


def test_load_parameters_that_do_not_fit(stub: Any) -> None:
    request = service_pb2.RepositoryModelLoadRequest(model_name="spare")
    request.parameters["config"].bytes_param = b"{}"
    status, message = refused(stub.RepositoryModelLoad, request)
    assert status == "INVALID_ARGUMENT"
    assert "expected string_param, got bytes_param" in message
    request = service_pb2.RepositoryModelUnloadRequest(model_name="spare")
    request.parameters["unload_dependents"].int64_param = 1
    assert refused(stub.RepositoryModelUnload, request)[0] == "INVALID_ARGUMENT"


@pytest.mark.parametrize("rpc", ["RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"])
def test_a_repository_by_name(stub: Any, rpc: str) -> None:
    request = getattr(service_pb2, f"{rpc}Request")(repository_name="mine")
    status, message = refused(getattr(stub, rpc), request)
    assert status == "UNIMPLEMENTED"
    assert "repository_name" in message


def test_loading_is_the_operators_unless_he_says_otherwise(server: RunningServer) -> None:
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        status, message = refused(client.load_model, "double")
    assert status == "UNAVAILABLE"
    assert "explicit model load / unload is not allowed" in message


def test_system_shared_memory(client: Any) -> None:
    shared = SharedObject(create=True, size=64)
    try:
        client.register_system_shared_memory("a", f"/{shared.name}", 32, offset=8)
        region = client.get_system_shared_memory_status("a").regions["a"]
        assert (region.name, region.key) == ("a", f"/{shared.name}")
        assert (region.offset, region.byte_size) == (8, 32)
        status, message = refused(client.register_system_shared_memory, "a", f"/{shared.name}", 32)
        assert status == "ALREADY_EXISTS"
        assert "'a' already in manager" in message
        client.register_system_shared_memory("b", f"/{shared.name}", 64)
        assert set(client.get_system_shared_memory_status().regions) == {"a", "b"}
        client.unregister_system_shared_memory("a")
        assert refused(client.get_system_shared_memory_status, "a")[0] == "NOT_FOUND"
        client.unregister_system_shared_memory()
        assert not client.get_system_shared_memory_status().regions
    finally:
        shared.close()
        shared.unlink()


def test_shared_memory_is_off_unless_allowed(server: RunningServer) -> None:
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        status, message = refused(client.register_system_shared_memory, "a", "/a", 1)
    assert status == "UNIMPLEMENTED"
    assert "disabled" in message


def test_there_is_no_cuda_shared_memory(client: Any) -> None:
    assert not client.get_cuda_shared_memory_status().regions
    client.unregister_cuda_shared_memory()
    status, message = refused(client.register_cuda_shared_memory, "a", b"AAAA", 0, 1)
    assert status == "UNIMPLEMENTED"
    assert "not supported" in message
    assert refused(client.get_cuda_shared_memory_status, "a")[0] == "NOT_FOUND"


def test_trace_settings(client: Any) -> None:
    assert client.get_trace_settings(as_json=True)["settings"]["trace_level"] == {"value": ["OFF"]}
    changed = client.update_trace_settings("echo", {"trace_rate": "7"})
    assert list(changed.settings["trace_rate"].value) == ["7"]
    assert list(client.get_trace_settings().settings["trace_rate"].value) == ["1000"]
    back = client.update_trace_settings("echo", {"trace_rate": None})
    assert list(back.settings["trace_rate"].value) == ["1000"]
    assert refused(client.update_trace_settings, None, {"trace_file": "x"})[0] == "UNIMPLEMENTED"
    assert refused(client.update_trace_settings, None, {"trace_rate": "x"})[0] == "INVALID_ARGUMENT"
    status, message = refused(client.get_trace_settings, "nobody")
    assert status == "INVALID_ARGUMENT"
    assert "Request for unknown model : nobody" in message


def test_log_settings(client: Any, stub: Any) -> None:
    settings = client.get_log_settings().settings
    assert settings["log_info"].bool_param is True
    assert settings["log_verbose_level"].uint32_param == 0
    assert settings["log_verbose_level"].WhichOneof("parameter_choice") == "uint32_param"
    assert settings["log_format"].string_param == "default"
    changes = {"log_verbose_level": 1, "log_format": "ISO8601", "log_warning": False}
    changed = client.update_log_settings(changes).settings
    assert changed["log_verbose_level"].uint32_param == 1
    assert changed["log_format"].string_param == "ISO8601"
    assert changed["log_warning"].bool_param is False
    client.update_log_settings({"log_verbose_level": 0, "log_format": "default"})
    assert refused(client.update_log_settings, {"log_file": "x"})[0] == "UNIMPLEMENTED"
    assert refused(client.update_log_settings, {"log_format": "x"})[0] == "INVALID_ARGUMENT"
    request = service_pb2.LogSettingsRequest()
    request.settings["log_info"].SetInParent()
    status, message = refused(stub.LogSettings, request)
    assert status == "INVALID_ARGUMENT"
    assert "'log_info' has no value" in message


def test_health_check(explicit: RunningServer, client: Any) -> None:
    with grpc.insecure_channel(explicit.grpc) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)

        def check(service: str) -> Any:
            return health.Check(health_pb2.HealthCheckRequest(service=service)).status

        assert check("") == HealthState.SERVING
        assert check("inference.GRPCInferenceService") == HealthState.SERVING
        assert check("echo") == HealthState.SERVING
        assert check("spare") == HealthState.NOT_SERVING
        assert refused(check, "never heard of")[0] == "NOT_FOUND"
        watch = health.Watch(health_pb2.HealthCheckRequest(service="spare"))
        assert next(watch).status == HealthState.NOT_SERVING
        client.load_model("spare")
        assert next(watch).status == HealthState.SERVING
        client.unload_model("spare")
        assert next(watch).status == HealthState.NOT_SERVING
        watch.cancel()
        watch = health.Watch(health_pb2.HealthCheckRequest(service="never heard of"))
        assert next(watch).status == HealthState.SERVICE_UNKNOWN
        watch.cancel()


def test_reflection(explicit: RunningServer) -> None:
    with grpc.insecure_channel(explicit.grpc) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert set(database.get_services()) == {
            "inference.GRPCInferenceService",
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        }
        service = DescriptorPool(database).FindServiceByName("inference.GRPCInferenceService")
        assert "ModelStreamInfer" in service.methods_by_name


def test_restricted_protocols(tmp_path: Path) -> None:
    write_fake(tmp_path, "echo")
    restriction = "inference,health,shared-memory,trace:admin=open sesame"
    with (
        serving(tmp_path, "--grpc-restricted-protocol", restriction) as running,
        tritonclient.grpc.InferenceServerClient(running.grpc) as client,
        grpc.insecure_channel(running.grpc) as channel,
    ):
        key = {"triton-grpc-protocol-admin": "open sesame"}
        calls: list[Any] = [
            lambda **headers: client.is_server_live(**headers),
            lambda **headers: client.get_system_shared_memory_status(**headers),
            lambda **headers: client.get_trace_settings(**headers),
            lambda **headers: client.infer("echo", [ones()], **headers),
        ]
        for call in calls:
            for headers in ({}, {"triton-grpc-protocol-admin": "wrong"}, {"admin": "open sesame"}):
                status, message = refused(call, headers=headers)
                assert status == "UNAVAILABLE"
                assert message == (
                    "This protocol is restricted, expecting header 'triton-grpc-protocol-admin'"
                )
            assert call(headers=key)
        health: Any = health_pb2_grpc.HealthStub(channel)
        assert refused(health.Check, health_pb2.HealthCheckRequest())[0] == "UNAVAILABLE"
        assert refused(next, health.Watch(health_pb2.HealthCheckRequest()))[0] == "UNAVAILABLE"
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert refused(next, stub.ModelStreamInfer(iter([])))[0] == "UNAVAILABLE"
        assert client.get_server_metadata().name == "slipway"


def test_as_strict_as_triton(tmp_path: Path) -> None:
    write_fake(tmp_path, "echo")
    with (
        serving(tmp_path, "--triton-strict") as running,
        tritonclient.grpc.InferenceServerClient(running.grpc) as client,
        grpc.insecure_channel(running.grpc) as channel,
    ):
        health: Any = health_pb2_grpc.HealthStub(channel)
        answer = health.Check(health_pb2.HealthCheckRequest(service="whatever"))
        assert answer.status == HealthState.SERVING
        status, _ = refused(client.register_cuda_shared_memory, "a", b"AAAA", 0, 1)
        assert status == "INVALID_ARGUMENT"


def test_watchers_do_not_hold_up_the_end(tmp_path: Path, front: str) -> None:
    write_fake(tmp_path, "echo")
    with (
        serving(tmp_path, "--grpc-front", front) as running,
        grpc.insecure_channel(running.grpc) as channel,
    ):
        health: Any = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == HealthState.SERVING
        running.process.terminate()
        assert next(watch).status == HealthState.NOT_SERVING
        assert list(watch) == []
        running.process.wait(10)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compression(client: Any, algorithm: str) -> None:
    answer = client.infer("echo", [ones()], compression_algorithm=algorithm).as_numpy("y")
    assert answer.tolist() == [[1, 1, 1, 1]]

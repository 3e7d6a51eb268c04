from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tritonclient.http
from hypothesis import given
from hypothesis import strategies as st

from serving.cache import ResponseCache, parse_cache_config
from serving.errors import OperatorError
from serving.types import Array, InferRequest
from tests.support import config, metric, serving, write_config


def request(*tensors: Array, outputs: tuple[str, ...] = ()) -> InferRequest:
    inputs = {f"x{position}": tensor for position, tensor in enumerate(tensors)}
    return InferRequest("m", inputs, outputs=outputs)


def text(*elements: bytes) -> Array:
    return np.array(elements, dtype=object)


@given(sizes=st.lists(st.integers(0, 2000), min_size=1, max_size=60), limit=st.integers(0, 5000))
def test_it_never_holds_more_than_its_limit(sizes: list[int], limit: int) -> None:
    cache = ResponseCache(limit)
    for number, size in enumerate(sizes):
        key = cache.key(request(np.array([number])), 0)
        tensor = np.full(size, number % 256, np.uint8)
        cache.put(key, {"y": tensor})
        assert cache.bytes <= limit
        found = cache.get(key)
        if found is not None:
            np.testing.assert_array_equal(found["y"], tensor)
        else:
            assert size + 512 > limit


def test_the_least_recently_used_leaves_first() -> None:
    cache = ResponseCache(2 * (512 + 100))
    keys = [cache.key(request(np.array([number])), 0) for number in range(3)]
    for key in keys[:2]:
        cache.put(key, {"y": np.zeros(100, np.uint8)})
    assert cache.get(keys[0]) is not None
    cache.put(keys[2], {"y": np.zeros(100, np.uint8)})
    assert [cache.get(key) is not None for key in keys] == [True, False, True]


DIFFERENT: list[tuple[InferRequest, int]] = [
    (request(np.zeros(2, np.float32)), 0),
    (request(np.zeros(2, np.float32)), 1),
    (request(np.zeros((2, 1), np.float32)), 0),
    (request(np.zeros(2, np.int32)), 0),
    (request(np.ones(2, np.float32)), 0),
    (request(np.zeros(2, np.float32), outputs=("y",)), 0),
    (request(np.zeros(1, np.float32), np.zeros(1, np.float32)), 0),
    (request(text(b"ab", b"c")), 0),
    (request(text(b"a", b"bc")), 0),
    (request(text(b"abc", b"")), 0),
]


def test_different_requests_have_different_keys() -> None:
    assert len({ResponseCache.key(*case) for case in DIFFERENT}) == len(DIFFERENT)


def test_the_order_of_inputs_and_outputs_is_no_difference() -> None:
    one, two = np.zeros(1), np.ones(1)
    first = InferRequest("m", {"a": one, "b": two}, outputs=("p", "q"))
    second = InferRequest("m", {"b": two, "a": one}, outputs=("q", "p"))
    assert ResponseCache.key(first, 0) == ResponseCache.key(second, 0)


def test_what_is_kept_is_a_copy() -> None:
    cache, tensor = ResponseCache(10_000), np.zeros(4)
    cache.put(b"key", {"y": tensor})
    tensor[:] = 9
    found = cache.get(b"key")
    assert found is not None
    assert not found["y"].any()
    with pytest.raises(ValueError, match="read-only"):
        found["y"][0] = 1


@pytest.mark.parametrize("value", ["local", "redis,size=3", "local,size=-1", "local,size=x"])
def test_bad_options(value: str) -> None:
    with pytest.raises(OperatorError, match="expected local,size="):
        parse_cache_config([value])
    assert parse_cache_config(["local,size=1048576"]) == 1048576


def test_a_model_that_caches(tmp_path: Path) -> None:
    slow = 'parameters { key: "delay_ms" value { string_value: "50" } }'
    extra = f"response_cache {{ enable: true }} {slow}"
    write_config(tmp_path, "cached", config(backend="fake", extra=extra))
    (tmp_path / "cached" / "1").mkdir()
    with (
        serving(tmp_path) as server,
        tritonclient.http.InferenceServerClient(server.http) as client,
    ):
        for value in (1, 2, 1, 1):
            tensor = tritonclient.http.InferInput("x", [1, 4], "FP32")
            tensor.set_data_from_numpy(np.full((1, 4), value, np.float32))
            assert client.infer("cached", [tensor]).as_numpy("y")[0, 0] == value
        statistics = client.get_inference_statistics("cached")["model_stats"][0]
        assert statistics["execution_count"] == 2
        assert statistics["inference_stats"]["success"]["count"] == 4
        assert statistics["inference_stats"]["cache_hit"]["count"] == 2
        assert statistics["inference_stats"]["cache_miss"]["count"] == 2
        assert statistics["inference_stats"]["queue"]["count"] == 2
        assert metric(server, "nv_cache_num_hits_per_model", model="cached") == 2
        assert metric(server, "nv_cache_num_misses_per_model", model="cached") == 2

"""The plainest host of the graphs: ONNX Runtime, one cache per row, no pool and no scheduler.

What it computes is the standard for every other host: exports are compared with torch through it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from training.graphs.names import BEST, DECODER_FILE, ENCODER_FILE, LOGITS

_LANES = 16
"""A product with one column more than these is rounded otherwise than any wider or narrower one,
and a prompt of that many tokens would depend in its last bits on whether it was padded."""

_STALE = 1e4
"""Far from any key or value; a host's buffers hold whatever earlier rows left."""

Logits = npt.NDArray[np.float32]
Cache = dict[str, npt.NDArray[np.float32]]
"""Input name of the decoder -> [row, key-value head, position, head dimension]."""


class Row:
    """One text that is being generated."""

    def __init__(self, cache: Cache, source_length: int | None = None):
        self.cache = cache
        self.source_length = source_length
        self.length = 0
        """Positions that are cached."""


class ReferenceHost:
    def __init__(self, directory: Path, capacity: int):
        """`capacity` is the positions that every row's cache has."""
        self.decoder = open_session(directory / DECODER_FILE)
        encoder = directory / ENCODER_FILE
        self.encoder = open_session(encoder) if encoder.exists() else None
        self._capacity = capacity
        self.wrong_choices = 0
        """Times that the graph has named another token than that of its largest logit."""

    def begin(self, source: Sequence[int] | None = None) -> Row:
        """A row without tokens; `source` is what an encoder-decoder model reads first."""
        if self.encoder is None:
            return self.row()
        assert source is not None, "an encoder-decoder model needs a source text"
        return self.row(self.encode([source])[0])

    def row(self, encoded: Cache | None = None) -> Row:
        """A row without tokens; `encoded` is what the encoder has made of its source."""
        cache: Cache = {
            spec.name: np.full(
                (1, spec.shape[1], self._capacity, spec.shape[3]), _STALE, np.float32
            )
            for spec in self.decoder.get_inputs()
            if spec.name.startswith("past_")
        }
        if encoded is None:
            return Row(cache)
        # What the attention operator is given as if it were new.
        last = {name.replace("cross", "last"): keys[:, :, -1:] for name, keys in encoded.items()}
        return Row(cache | encoded | last, next(iter(encoded.values())).shape[2])

    def encode(self, sources: Sequence[Sequence[int]]) -> list[Cache]:
        """Keys and values of several source texts, encoded together."""
        assert self.encoder is not None, "a decoder-only model encodes nothing"
        input_ids = np.zeros((len(sources), max(map(len, sources))), np.int64)
        mask = np.zeros_like(input_ids)
        for row, source in enumerate(sources):
            input_ids[row, : len(source)] = source
            mask[row, : len(source)] = 1
        names = [spec.name for spec in self.encoder.get_outputs()]
        outputs = self.encoder.run(names, {"input_ids": input_ids, "attention_mask": mask})
        return [
            {
                name: output[row : row + 1, :, : len(source)]
                for name, output in zip(names, outputs, strict=True)
            }
            for row, source in enumerate(sources)
        ]

    def run(self, rows: Sequence[Row], tokens: Sequence[Sequence[int]]) -> Logits:
        """Append tokens to every row in one run; returns the logits after each row's last.

        More than one token for any row is a prompt, and then no row may have tokens before.
        """
        width = max(map(len, tokens))
        if width > 1 and width % _LANES == 1:
            width += 1
        assert width == 1 or not any(row.length for row in rows), "a prompt comes first"
        past = np.array([row.length for row in rows])
        input_ids = np.zeros((len(rows), width), np.int64)
        for index, new in enumerate(tokens):
            input_ids[index, : len(new)] = new
        lengths = past + [len(new) for new in tokens]
        inputs: dict[str, npt.NDArray[Any]] = {
            "input_ids": input_ids,
            "positions": past[:, None] + np.arange(width),
            "lengths": lengths.astype(np.int32),
        }
        if self.encoder is not None:
            inputs["source_lengths"] = np.array([row.source_length for row in rows], np.int32)
        caches = {name: _stack([row.cache[name] for row in rows]) for name in rows[0].cache}
        logits = self._run_in_place(inputs, caches)
        for index, row in enumerate(rows):
            row.length = int(lengths[index])
            for name, cache in row.cache.items():
                cache[:] = caches[name][index : index + 1, :, : cache.shape[2]]
        return logits

    def _run_in_place(self, inputs: dict[str, npt.NDArray[Any]], caches: Cache) -> Logits:
        """Run with each cache as an input and as the output that it becomes."""
        binding = self.decoder.io_binding()
        shared = {name: ort.OrtValue.ortvalue_from_numpy(cache) for name, cache in caches.items()}
        for name, value in inputs.items():
            binding.bind_cpu_input(name, value)
        written = {present_of(name): value for name, value in shared.items() if name[:4] != "last"}
        for name, value in shared.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in written.items():
            binding.bind_ortvalue_output(name, value)
        for name in (LOGITS, BEST):
            binding.bind_output(name)
        self.decoder.run_with_iobinding(binding)
        logits, best = (np.array(value.numpy()) for value in binding.get_outputs()[-2:])
        self.wrong_choices += int((best != logits.argmax(1)).sum())
        return logits


def present_of(cache: str) -> str:
    """The output that a cache of the decoder becomes."""
    return f"present_{cache.removeprefix('past_')}"


def _stack(caches: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """Rows of different lengths in one array, padded at the end with what must not matter."""
    _, heads, _, head_dim = caches[0].shape
    longest = max(cache.shape[2] for cache in caches)
    stacked = np.full((len(caches), heads, longest, head_dim), _STALE, np.float32)
    for index, cache in enumerate(caches):
        stacked[index, :, : cache.shape[2]] = cache[0]
    return stacked


def open_session(graph: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

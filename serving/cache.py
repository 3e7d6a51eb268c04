"""Answers kept for requests that come again, for models whose config asks for it."""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from serving.errors import OperatorError
from serving.types import DATATYPES, Array, InferRequest, Tensors

DEFAULT_BYTES = 64 * 1024 * 1024
_OVERHEAD_BYTES = 512
"""What an entry costs beside its tensors, roughly: key, arrays' headers, bookkeeping."""


class ResponseCache:
    """Output tensors of the least recently used requests leave first; `limit_bytes` bounds all."""

    def __init__(self, limit_bytes: int):
        self._limit_bytes = limit_bytes
        self._entries: OrderedDict[bytes, tuple[Tensors, int]] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    @staticmethod
    def key(request: InferRequest, generation: int) -> bytes:
        """A digest of all that an answer depends on.

        `generation` tells one loaded model from every other, so a model that is loaded anew never
        answers with what the one before it computed.
        """
        digest = hashlib.blake2b(digest_size=32)
        digest.update(repr((generation, sorted(set(request.outputs)))).encode())
        for name, tensor in sorted(request.inputs.items()):
            # Framed by repr and by length, so that no two requests have the same text.
            digest.update(repr((name, DATATYPES[tensor.dtype], tensor.shape)).encode())
            if tensor.dtype == object:
                for element in tensor.flat:
                    digest.update(len(element).to_bytes(8, "little"))
                    digest.update(element)
            else:
                digest.update(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
        return digest.digest()

    def get(self, key: bytes) -> Tensors | None:
        """The outputs kept under a key. They must not be written to."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return dict(entry[0])

    def put(self, key: bytes, outputs: Tensors) -> None:
        """Keep a copy, if it fits at all; others make room."""
        size = _OVERHEAD_BYTES + sum(map(_size, outputs.values()))
        if size > self._limit_bytes or key in self._entries:
            return
        while self.bytes + size > self._limit_bytes:
            _, (_, freed) = self._entries.popitem(last=False)
            self.bytes -= freed
        # A tensor may be a few rows of a large batch, which must not stay in memory with it.
        copies = {name: tensor.copy() for name, tensor in outputs.items()}
        for copy in copies.values():
            copy.flags.writeable = False
        self._entries[key] = (copies, size)
        self.bytes += size


def parse_cache_config(values: Sequence[str]) -> int:
    """The limit in bytes, from Triton's `--cache-config local,size=…`. Raises `OperatorError`."""
    limit = DEFAULT_BYTES
    for value in values:
        found = re.fullmatch(r"local,size=(\d{1,15})", value)
        if found is None:
            raise OperatorError(f"--cache-config {value}: expected local,size=<bytes>")
        limit = int(found[1])
    return limit


def _size(tensor: Array) -> int:
    if tensor.dtype == object:
        return sum(len(element) + 64 for element in tensor.flat)
    return tensor.nbytes

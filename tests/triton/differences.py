"""Where Slipway differs from Triton on purpose, each with its reason. Nothing else may differ."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from tests.triton.wire import Difference

ANYTHING: Any = object()


@dataclass(frozen=True)
class Allowed:
    """One field may differ (or any), in these two values, in the cases of these names."""

    reason: str
    cases: tuple[str, ...]
    field: Any = ANYTHING
    triton: Any = ANYTHING
    slipway: Any = ANYTHING
    strict: bool = False
    """With `--triton-strict`, Slipway does as Triton does."""
    sometimes: bool = False
    """A matter of timing within Triton."""

    def covers(self, case: str, difference: Difference) -> bool:
        return (
            any(fnmatchcase(case, pattern) for pattern in self.cases)
            and (self.field is ANYTHING or self.field == difference.field)
            and (self.triton is ANYTHING or self.triton == difference.triton)
            and (self.slipway is ANYTHING or self.slipway == difference.slipway)
        )


ALLOWED = (
    Allowed(
        "A request that is wrong is its sender's fault, and not the server's.",
        (
            "http/index/*",
            "http/values/*",
            "http/malformed/*",
            "http/invalid/*",
            "http/binary/*",
            "http/classification/*",
            "http/parameters/*",
            "http/compression/*",
            "http/shared memory/*",
            "http/repository/load, malformed",
            "http/repository/load, parameters an array",
            "http/repository/load, config not a string",
            "http/repository/load, unknown parameter",
            "http/trace/*",
            "http/logging/*",
            "http/generate/*",
            "http/sequence/*",
        ),
        "status",
        500,
        400,
        strict=True,
    ),
    Allowed(
        "The same over gRPC.",
        (
            "grpc/shared memory/no key",
            "grpc/shared memory/unknown key",
            "grpc/shared memory/output, too small",
            "grpc/infer/required input left out",
        ),
        "status",
        "INTERNAL",
        "INVALID_ARGUMENT",
    ),
    Allowed(
        "A required input that is missing is named, instead of failing inside the model.",
        ("http/infer/required input left out",),
        "status",
        500,
        400,
    ),
    Allowed(
        "The protocol's own description lists the path with a slash.",
        ("http/description/server, trailing slash",),
        "status",
        404,
        200,
    ),
    Allowed(
        "A value that the type cannot hold is refused, instead of becoming another.",
        ("http/values/*integer beyond the type", "http/values/beyond the largest float"),
        "status",
        200,
        400,
    ),
    Allowed(
        "The same over gRPC.",
        ("grpc/infer/typed contents beyond the type",),
        "status",
        "OK",
        "INVALID_ARGUMENT",
    ),
    Allowed(
        "Bytes that are not text would make the answer invalid JSON; binary output has them.",
        ("http/values/bytes that are not text, as JSON",),
        "status",
        200,
        400,
    ),
    Allowed(
        "Triton reads some decimal numbers as a neighbour of the nearest double.",
        ("http/types/FP64, JSON",),
        "tensors",
    ),
    Allowed(
        "An unknown log format is the sender's mistake, and it is no use trying again.",
        ("http/logging/post, unknown format",),
        "status",
        503,
        400,
    ),
    Allowed(
        "A file must stay inside the model's directory, wherever it says it is.",
        ("http/repository/load, absolute file",),
        "status",
        200,
    ),
    Allowed(
        "As later Tritons do: an output is asked for once, and 'headers' is their own parameter.",
        ("http/infer/same output twice", "http/parameters/reserved headers"),
        "status",
        200,
        400,
    ),
    Allowed(
        "The same over gRPC.",
        ("grpc/infer/same output twice", "grpc/parameters/reserved headers"),
        "status",
        "OK",
        "INVALID_ARGUMENT",
    ),
    Allowed(
        "As later Tritons do: a name that cannot be a model's is the sender's mistake.",
        ("grpc/repository/load, no name",),
        "status",
        "INTERNAL",
        "INVALID_ARGUMENT",
    ),
    Allowed(
        "As later Tritons do: a name that cannot be a model's is the sender's mistake.",
        ("grpc/repository/load, no name",),
        "texts",
    ),
    Allowed(
        "There is no such version, whatever its size.",
        ("http/metadata/version beyond 64 bits", "grpc/metadata/version beyond 64 bits"),
    ),
    Allowed(
        "A name is the same name when it is percent-encoded.",
        ("http/metadata/escaped name",),
        "status",
        404,
        200,
    ),
    Allowed(
        "FP16 and BF16 work in JSON, too.",
        (
            "http/values/FP16 to JSON",
            "http/values/BF16 to JSON",
            "http/types/FP16, JSON",
            "http/types/BF16, JSON",
        ),
    ),
    Allowed(
        "The protocol's text: binary_data_output counts for outputs that say nothing of their own.",
        ("http/binary/output overrides request",),
    ),
    Allowed(
        "Any coding includes gzip.",
        ("http/compression/anything out",),
    ),
    Allowed(
        "What does not have the form that the protocol gives it is refused, not guessed at.",
        (
            "http/index/array",
            "http/infer/unevenly nested",
            "http/malformed/byte order mark",
            "http/malformed/parameters of an input an array",
            "http/malformed/parameters of an output an array",
            "http/repository/unload, dependents a string",
            "http/repository/unload, malformed",
            "http/trace/post, unknown level",
            "grpc/trace/unknown level",
            "grpc/infer/too many raw contents",
            "grpc/parameters/timeout negative",
            "grpc/shared memory/no name",
        ),
    ),
    Allowed(
        "A model that fails is the server's fault, and one answer is what generate promises.",
        (
            "http/generate/model fails",
            "http/generate/stream, model fails",
            "http/generate/decoupled, two responses",
            "http/generate/decoupled, no response",
        ),
    ),
    Allowed(
        "Unsigned parameters are integers like others; the clients' own API takes them.",
        ("grpc/parameters/unsigned", "grpc/sequence/unsigned id"),
    ),
    Allowed(
        "There is no CUDA here to register memory of, whatever the handle.",
        ("grpc/shared memory/CUDA, no handle",),
        "status",
        "INVALID_ARGUMENT",
        "UNIMPLEMENTED",
    ),
    Allowed(
        "Bytes that are no message are their sender's fault.",
        (
            "grpc/health/not a message",
            "grpc/infer/not a message",
            "grpc/infer/name that is not text",
        ),
    ),
    Allowed(
        "Triton 2.51 may refuse to unregister a region for a moment after it was used.",
        (
            "grpc/shared memory/input",
            "grpc/shared memory/input, beyond the region",
            "grpc/shared memory/input and output",
            "grpc/shared memory/output, too small",
        ),
        "status",
        sometimes=True,
    ),
)

STRICT_ALLOWED = tuple(
    Allowed(
        "Strict follows kinds of faults, not the order in which Triton's parser meets them.",
        (case,),
    )
    for case in (
        "http/index/array",
        "http/values/negative for an unsigned",
        "http/malformed/empty body",
        "http/malformed/byte order mark",
        "http/malformed/not UTF-8",
        "http/malformed/input a string",
        "http/malformed/parameters of an input an array",
        "http/malformed/parameters of an output an array",
        "http/invalid/no dimensions",
        "http/invalid/dimension beyond 63 bits",
        "http/binary/no header",
        "http/binary/header starts as a number",
        "http/classification/negative",
        "http/parameters/priority negative",
        "http/parameters/timeout negative",
        "http/compression/compressed data cut",
        "http/shared memory/unknown key",
        "http/shared memory/input, negative offset",
        "http/shared memory/output, too small",
        "http/logging/post, bool a string",
        "http/logging/post, level a string",
        "http/logging/post, level a bool",
        "http/logging/post, level negative",
        "http/generate/model fails",
        "http/generate/stream, model fails",
        "http/sequence/negative id",
        "http/repository/load, unknown parameter",
    )
)
"""What may differ, besides, with `--triton-strict`."""

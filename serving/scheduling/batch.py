"""From several requests' tensors to one batch, and back."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from serving.config import BatchInput, BatchInputKind, ModelConfig
from serving.errors import InferenceFailed, InvalidRequest, ModelLoadError
from serving.scheduling.gathering import joined
from serving.types import DYNAMIC, NUMPY_TYPES, Array, Tensors, TensorSpec

Shape = tuple[int, ...]


class _Source(NamedTuple):
    """The input whose lengths an output has, divided by `stride` and rounded up."""

    name: str
    stride: int = 1


class BatchLayout:
    """How requests lie in a batch of one model. Shapes here include the batch dimension, if any.

    **Reshapes.** Where the config has `reshape`, a tensor has one shape for callers and another
    for the model. Dynamic dimensions correspond in order, as in Triton; where their numbers
    differ, the only dynamic dimension left follows from the number of elements.

    **Ragged inputs, concatenated.** With a `batch_input` or a `batch_output` in the config, every
    ragged input is flattened, and the model gets all requests' elements in one tensor of shape
    [total]. Each batch input tells it about its source: one number for each request, or, for the
    item shapes, one row for each row of the batch. A batch output is cut into pieces that have
    their source's sizes where the output's dimensions are dynamic.

    **Ragged inputs, padded.** Without those (Triton cannot do this), every request's ragged inputs
    are padded at the end of their dynamic dimensions to the longest in the batch. The padding is
    the parameter `pad_value.<input>`, else `pad_value`, else 0; strings are padded with empty ones.
    Outputs are cut back to what the request would have got alone: the k-th dynamic dimension of an
    output that is as long as the k-th dynamic dimension of the first ragged input has become,
    gets the length that the request's own input has. A dimension of another length stays.
    Where that guess is wrong, the parameter `unpad` says which outputs follow which input, for
    example `logits=tokens, hidden=tokens`. Then those outputs must have the padded length, and
    all others are left as they are. An output may be shorter by a whole number, as the frames of
    a waveform are: with `logits=waveform/640` there is one for every 640 samples or part of them.

    The policy sees to it that padding does not make a batch much larger than its requests.

    Raises `ModelLoadError` for parameters that make no sense.
    """

    def __init__(self, config: ModelConfig):
        self._batches = config.max_batch_size > 0
        self._callers = {spec.name: spec.shape for spec in (*config.inputs, *config.outputs)}
        self._models = {**self._callers, **config.reshapes}
        self._reshapes = config.reshapes
        self._ragged = [spec for spec in config.inputs if spec.name in config.ragged]
        self._ragged_names = config.ragged
        # Then what fits the specs has the same shapes, or never meets another request.
        self._all_are_equal = not self._batches or not any(
            spec.optional or DYNAMIC in spec.shape[1:] for spec in config.inputs
        )
        self._batch_inputs = config.batch_inputs
        self._scattered = {output.name: output.source for output in config.batch_outputs}
        self._concatenates = bool(config.batch_inputs or config.batch_outputs)
        self._pads: Mapping[str, Array] = {}
        self._followed: Mapping[str, _Source] = {}
        self._must_follow = "unpad" in config.parameters
        if self._ragged and self._batches and not self._concatenates:
            self._pads = {spec.name: _pad_value(config, spec) for spec in self._ragged}
            self._followed = self._read_unpad(config)
        # Then tensors are as callers see them, at most one after another.
        self._is_plain = not (self._reshapes or self._pads or self._concatenates)
        self.can_be_gathered = (
            self._is_plain
            and self._batches
            and self._all_are_equal
            and all(spec.datatype != "BYTES" for spec in config.inputs)
        )
        """Whether a batch is its requests' rows one after another, all of one size."""
        for name, source in self._scattered.items():
            if len(self._models.get(source, ())) < len(self._models.get(name, ())):
                raise ModelLoadError(
                    f"model {config.name!r}: batch_output {name!r} needs a source with as many"
                    f" dimensions, and {source!r} has not"
                )

    def key(self, inputs: Tensors) -> Hashable:
        """Requests with equal keys can share a run, if they fit the specs of the config."""
        if self._all_are_equal:
            return None
        ragged = self._ragged_names
        shapes = [
            tensor.ndim if name in ragged else tensor.shape[1:] for name, tensor in inputs.items()
        ]
        return (*inputs, *shapes)

    def padded_shapes(self, inputs: Tensors) -> Sequence[Shape]:
        """Of one row of each input that is padded, as the model sees it.

        Raises `InvalidRequest` when an input cannot have the shape that the model wants, and for
        an empty one: alone it would be an error of the model, and among others nothing but padding.
        """
        if not self._pads:
            return ()
        seen = self._as_model_sees(inputs)
        padded = [name for name in seen if name in self._pads]
        for name in padded:
            if not seen[name].size:
                raise InvalidRequest(
                    f"inference input {name!r} is empty: expected at least one element,"
                    f" got the shape {list(seen[name].shape)}"
                )
        return [seen[name].shape[1:] for name in padded]

    def stack(self, parts: Sequence[Tensors]) -> Tensors:
        """The model's inputs for these requests, whose keys are equal, in this order.

        A single request's tensors pass uncopied where the model takes them as they are, and so do
        those that were gathered. Raises `InvalidRequest` when an input cannot have the shape that
        the model wants.
        """
        if self._is_plain:
            if (together := joined(parts)) is not None:
                return together
            if len(parts) == 1:
                return parts[0]
        if self._reshapes:
            parts = [self._as_model_sees(part) for part in parts]
        stacked: Tensors = {}
        for name in parts[0]:
            tensors = [part[name] for part in parts]
            if name in self._pads:
                tensors = [_padded(tensors, self._pads[name])]
            elif name in self._ragged_names and self._concatenates:
                tensors = [tensor.ravel() for tensor in tensors]
            stacked[name] = tensors[0] if len(tensors) == 1 else np.concatenate(tensors)
        for described in self._batch_inputs:
            if described.source in parts[0]:
                stacked[described.name] = self._description(
                    described, [part[described.source].shape for part in parts]
                )
        return stacked

    def padding(self, parts: Sequence[Tensors], stacked: Tensors) -> tuple[int, int]:
        """Elements of the padded inputs that requests have, and that `stack` has added."""
        if not self._pads:
            return 0, 0
        padded = [name for name in stacked if name in self._pads]
        own = sum(part[name].size for part in parts for name in padded)
        return own, sum(stacked[name].size for name in padded) - own

    def split(
        self, outputs: Tensors, inputs: Sequence[Tensors], rows: Sequence[int]
    ) -> list[Tensors]:
        """Cut the model's outputs into those of each request, as views.

        `inputs` and `rows` are the requests' own, in the order in which they were stacked. Raises
        `InferenceFailed` when an output does not have the size that its inputs ask for.
        """
        seen = inputs if self._is_plain else [self._as_model_sees(part) for part in inputs]
        parts: list[Tensors] = [{} for _ in rows]
        for name, tensor in outputs.items():
            if name in self._scattered:
                pieces = self._scatter(name, tensor, seen)
            else:
                pieces = _cut(name, tensor, rows) if self._batches else [tensor]
                if name in self._followed and self._followed[name].name in seen[0]:
                    pieces = self._unpadded(name, pieces, seen)
            if name in self._reshapes:
                pieces = [self._as_callers_see(name, piece) for piece in pieces]
            for part, piece in zip(parts, pieces, strict=True):
                part[name] = piece
        return parts

    def part(self, outputs: Tensors, inputs: Tensors) -> Tensors:
        """One request's outputs as its caller sees them, whatever number of rows they have.

        Raises as `split` does.
        """
        if self._is_plain:
            return outputs
        seen = [self._as_model_sees(inputs)]
        return {
            name: self._as_callers_see(
                name, self._scatter(name, tensor, seen)[0] if name in self._scattered else tensor
            )
            for name, tensor in outputs.items()
        }

    def _as_model_sees(self, inputs: Tensors) -> Tensors:
        if self._reshapes.keys().isdisjoint(inputs):
            return inputs
        changed = dict(inputs)
        for name in self._reshapes.keys() & inputs.keys():
            shape = self._mapped(inputs[name], self._callers[name], self._reshapes[name])
            if shape is None:
                raise InvalidRequest(
                    f"input {name!r} of shape {list(inputs[name].shape)} cannot take the model's"
                    f" shape {list(self._reshapes[name])}"
                )
            changed[name] = inputs[name].reshape(shape)
        return changed

    def _as_callers_see(self, name: str, output: Array) -> Array:
        if name not in self._reshapes:
            return output
        shape = self._mapped(output, self._reshapes[name], self._callers[name])
        if shape is None:
            raise InferenceFailed(
                f"output {name!r} has shape {list(output.shape)}, which cannot take the shape"
                f" {list(self._callers[name])} that callers expect"
            )
        return output.reshape(shape)

    def _mapped(self, tensor: Array, source: Shape, target: Shape) -> Shape | None:
        """The tensor's shape when it goes from one spec to another; None if it does not fit."""
        if tensor.ndim != len(source):
            return None
        batch = tensor.shape[: int(self._batches)]
        wanted = list(target[len(batch) :])
        if wanted.count(DYNAMIC) == 1:
            known = math.prod((*batch, *(size for size in wanted if size != DYNAMIC)))
            wanted[wanted.index(DYNAMIC)] = tensor.size // max(1, known)
        else:
            dynamic = iter(
                size
                for size, spec in list(zip(tensor.shape, source, strict=True))[len(batch) :]
                if spec == DYNAMIC
            )
            wanted = [next(dynamic, 0) if size == DYNAMIC else size for size in wanted]
        shape = (*batch, *wanted)
        return shape if math.prod(shape) == tensor.size else None

    def _description(self, described: BatchInput, shapes: Sequence[Shape]) -> Array:
        counts = [math.prod(shape) for shape in shapes]
        dtype = NUMPY_TYPES[described.datatype]
        match described.kind:
            case BatchInputKind.ELEMENT_COUNT:
                return np.array(counts).astype(dtype)
            case BatchInputKind.ACCUMULATED_ELEMENT_COUNT:
                return np.cumsum(counts).astype(dtype)
            case BatchInputKind.ACCUMULATED_ELEMENT_COUNT_WITH_ZERO:
                return np.cumsum([0, *counts]).astype(dtype)
            case BatchInputKind.MAX_ELEMENT_COUNT_AS_SHAPE:
                return np.zeros(max(counts), dtype)
            case BatchInputKind.ITEM_SHAPE | BatchInputKind.ITEM_SHAPE_FLATTEN:
                items = (
                    [shape[1:] for shape in shapes for _ in range(shape[0])]
                    if self._batches
                    else shapes
                )
                table = np.array(items).astype(dtype)
                return table if described.kind is BatchInputKind.ITEM_SHAPE else table.ravel()

    def _scatter(self, name: str, tensor: Array, inputs: Sequence[Tensors]) -> list[Array]:
        source = self._scattered[name]
        if source not in inputs[0]:
            raise InferenceFailed(f"output {name!r} cannot be cut without the input {source!r}")
        shapes = [
            tuple(
                own if size == DYNAMIC else size
                for size, own in zip(self._models[name], part[source].shape, strict=False)
            )
            for part in inputs
        ]
        ends = np.cumsum([math.prod(shape) for shape in shapes])
        if tensor.size != ends[-1]:
            raise InferenceFailed(
                f"output {name!r} has {tensor.size} elements where {source!r} asks for {ends[-1]}"
            )
        pieces = np.split(tensor.ravel(), ends[:-1])
        return [piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True)]

    def _unpadded(
        self, name: str, pieces: Sequence[Array], inputs: Sequence[Tensors]
    ) -> list[Array]:
        source, stride = self._followed[name]
        sources = [part[source] for part in inputs]
        longest = _longest(sources)
        pairs = list(zip(self._dynamic(name), self._dynamic(source), strict=False))
        cut = []
        for piece, own in zip(pieces, sources, strict=True):
            ends: list[int | None] = [None] * piece.ndim
            for axis, source_axis in pairs:
                padded = math.ceil(longest[source_axis] / stride)
                if axis < piece.ndim and piece.shape[axis] == padded:
                    ends[axis] = math.ceil(own.shape[source_axis] / stride)
                elif self._must_follow:
                    raise InferenceFailed(
                        f"output {name!r} has shape {list(piece.shape)} where the padded"
                        f" {source!r} asks for {padded} in dimension {axis}"
                    )
            cut.append(piece[tuple(slice(end) for end in ends)])
        return cut

    def _dynamic(self, name: str) -> list[int]:
        """The model's dynamic dimensions, without the batch dimension."""
        shape = self._models[name]
        return [axis for axis in range(int(self._batches), len(shape)) if shape[axis] == DYNAMIC]

    def _read_unpad(self, config: ModelConfig) -> Mapping[str, _Source]:
        """By the names of outputs."""
        ragged = [spec.name for spec in self._ragged]
        text = config.parameters.get("unpad")
        if text is None:
            return {spec.name: _Source(ragged[0]) for spec in config.outputs}
        followed = {}
        for pair in text.split(",") if text.strip() else []:
            output, _, source = (word.strip() for word in pair.partition("="))
            stride = 1
            if source not in ragged:
                source, _, digits = (word.strip() for word in source.rpartition("/"))
                stride = int(digits) if digits.isdecimal() else 0
            if (
                source not in ragged
                or output not in {spec.name for spec in config.outputs}
                or stride < 1
            ):
                raise ModelLoadError(
                    f"model {config.name!r}: parameters unpad must be like 'output=ragged input,"
                    f" output=ragged input/640, …', got {text!r}"
                )
            followed[output] = _Source(source, stride)
        return followed


def _pad_value(config: ModelConfig, spec: TensorSpec) -> Array:
    """A scalar of the input's type."""
    dtype = NUMPY_TYPES[spec.datatype]
    if spec.datatype == "BYTES":
        return np.array(b"", dtype)
    key = f"pad_value.{spec.name}"
    if key not in config.parameters:
        key = "pad_value"
    text = config.parameters.get(key, "0")
    try:
        if dtype.kind in "biu":
            value = np.array(int(text), np.uint8 if dtype.kind == "b" else dtype)
        else:
            value = np.array(float(text))
    except (ValueError, OverflowError) as error:
        raise ModelLoadError(
            f"model {config.name!r}: parameters {key} must be a value of {spec.name!r}, which is"
            f" {spec.datatype}, got {text!r}"
        ) from error
    with np.errstate(over="ignore"):
        return value.astype(dtype)


def _cut(name: str, tensor: Array, rows: Sequence[int]) -> list[Array]:
    total = sum(rows)
    if tensor.ndim == 0 or len(tensor) != total:
        raise InferenceFailed(
            f"output {name!r} has shape {list(tensor.shape)} for a batch of {total} rows"
        )
    if len(rows) == 1:
        return [tensor]
    ends = accumulate(rows)
    return [tensor[end - count : end] for end, count in zip(ends, rows, strict=True)]


def _longest(tensors: Sequence[Array]) -> Shape:
    """The shape of the batch that holds them all when they are padded."""
    longest = (max(sizes) for sizes in zip(*(t.shape[1:] for t in tensors), strict=True))
    return (sum(len(tensor) for tensor in tensors), *longest)


def _padded(tensors: Sequence[Array], value: Array) -> Array:
    """All in one, each filled up to the longest, and copied but once."""
    if len(tensors) == 1:
        return tensors[0]
    longest = _longest(tensors)
    padded = np.empty(longest, tensors[0].dtype)
    filling = value.item() if padded.dtype == object else value
    at = 0
    for tensor in tensors:
        rows = padded[at : at + len(tensor)]
        at += len(tensor)
        if tensor.ndim == 2:
            rows[:, tensor.shape[1] :] = filling
        elif tensor.shape[1:] != longest[1:]:
            rows[...] = filling
        rows[tuple(slice(size) for size in tensor.shape)] = tensor
    return padded

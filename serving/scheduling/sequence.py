"""Runs sequences of requests, and tells the model about them."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from time import monotonic

import numpy as np

from serving.config import Control, ControlKind, SequenceBatching, State
from serving.engines.base import Engine
from serving.errors import InferenceFailed, InvalidRequest, ModelLoadError, shown
from serving.scheduling.batch import BatchLayout
from serving.scheduling.driver import Driver
from serving.scheduling.outcomes import Answer, expired, fail
from serving.scheduling.sequence_policy import SequenceBatch, SequencePolicy, Step
from serving.types import DYNAMIC, NUMPY_TYPES, Array, InferRequest, Run, SequenceStep, Tensors

_LENGTH = struct.Struct("<I")


@dataclass(slots=True, eq=False, kw_only=True)
class _Entry(Step):
    request: InferRequest
    answer: Answer[Tensors]


class SequenceScheduler(Driver[_Entry]):
    """Runs the requests of each sequence in order, and batches different sequences.

    See `Driver` for what a request can expect. `infer` returns the outputs that carry implicit
    state, too. It raises `InvalidRequest` for a request of several rows, without a sequence id, or
    of a sequence that is not going on or whose START was not served. What becomes of a sequence
    when one of its requests is not served is the policy's matter; one that failed leaves the
    implicit state as it was.

    `max_batch_size` 0 is a model without a batch dimension. `on_run` is told the number of requests
    in a run: rows that only fill an empty slot do not count. Raises `ModelLoadError` for an initial
    state that does not have its state's size.
    """

    def __init__(
        self,
        engine: Engine,
        sequences: SequenceBatching,
        *,
        max_batch_size: int,
        instances: int,
        on_run: Callable[[Run], None],
        layout: BatchLayout,
    ):
        self._tensors = _SequenceTensors(sequences, batches=max_batch_size > 0)
        self._policy = SequencePolicy[_Entry](
            sequences,
            max_rows=max(1, max_batch_size),
            instances=instances,
            initial_state=self._tensors.initial_state,
        )
        super().__init__(engine, self._policy, layout, on_run=on_run)

    @property
    def live(self) -> int:
        """Sequences that have begun and not ended."""
        return self._policy.live

    def continues(self, id: int | str) -> bool:
        """Whether a request of this sequence would be accepted without START."""
        return not self._stopping and self._policy.continues(id)

    def _accept(
        self, request: InferRequest, rows: int, answer: Answer[Tensors], now: float
    ) -> _Entry:
        sequence = self._checked(request, rows)
        timeout_at = now + request.timeout_s if request.timeout_s > 0 else math.inf
        entry = _Entry(
            id=sequence.id,
            start=sequence.start,
            end=sequence.end,
            expires_at=min(request.deadline, timeout_at),
            shape_key=self._layout.key(request.inputs),
            padded_shapes=self._layout.padded_shapes(request.inputs),
            request=request,
            answer=answer,
        )
        self._policy.add(entry, now)
        return entry

    def _forget(self, entry: _Entry) -> None:
        self._policy.discard(entry, monotonic())

    def _refuse(self) -> None:
        super()._refuse()
        self._policy.close()

    def _act(self, now: float) -> float:
        decision = self._policy.decide(now)
        for entry in decision.expired:
            fail(entry.answer, expired())
        for entry in decision.orphaned:
            fail(entry.answer, _not_started(entry.request.model_name, entry.id))
        for batch in decision.batches:
            if self._start(batch.steps, partial(self._finish, batch)):
                self._decide_soon()
        return decision.wake_at

    def _finish(self, batch: SequenceBatch[_Entry], run: Run | None) -> None:
        self._policy.finish(batch, monotonic())

    def _rows(self, batch: list[_Entry]) -> Sequence[_Entry | None]:
        return self._policy.rows(batch)

    def _inputs(self, rows: Sequence[_Entry | None]) -> list[Tensors]:
        return self._tensors.of(rows)

    def _keep(self, rows: Sequence[_Entry | None], outputs: Sequence[Tensors]) -> None:
        if not self._tensors.has_states:
            return
        # All or none: the requests of a run that fails begin again with the state that they had.
        states = [
            (entry, self._tensors.state(own, shared=len(rows) > 1))
            for entry, own in zip(rows, outputs, strict=True)
            if entry is not None
        ]
        for entry, state in states:
            entry.state = state

    def _checked(self, request: InferRequest, rows: int) -> SequenceStep:
        """The request's place in its sequence, if it can be accepted."""
        model = request.model_name
        if rows != 1:
            raise InvalidRequest(
                f"inference request to model '{model}' must specify batch-size 1 due to"
                f" requirements of sequence batcher"
            )
        sequence = request.sequence
        if sequence is None or not sequence.id:
            raise InvalidRequest(
                f"inference request to model '{model}' must specify a non-zero or non-empty"
                f" correlation ID"
            )
        self._tensors.check(sequence.id, model)
        if not sequence.start and not self._policy.continues(sequence.id):
            raise _not_started(model, sequence.id)
        return sequence


class _SequenceTensors:
    """The inputs that no caller sends: controls and implicit state.

    A row is one request's tensors, with a leading dimension of 1 if the model `batches`.
    """

    def __init__(self, sequences: SequenceBatching, *, batches: bool):
        self._controls = sequences.controls
        self._states = sequences.states
        self.has_states = bool(sequences.states)
        self._batch_shape = (1,) if batches else ()
        self.initial_state = {
            state.input_name: _initial_value(state, self._batch_shape) for state in self._states
        }

    def check(self, id: int | str, model: str) -> None:
        """Raises `InvalidRequest` if the model could not be told this id."""
        for control in self._controls:
            if control.kind is ControlKind.CORRID and not _fits(id, control.datatype):
                raise InvalidRequest(
                    f"correlation ID {shown(id)} is not a {control.datatype}, which model"
                    f" '{model}' takes as {control.name!r}"
                )

    def of(self, rows: Sequence[_Entry | None]) -> list[Tensors]:
        """All inputs of each row. An empty one is made of zeros, in the shapes of the others."""
        some = next(entry for entry in rows if entry is not None)
        like = {**some.request.inputs, **some.state}
        empty = {name: _zeros(tensor.shape, tensor.dtype) for name, tensor in like.items()}
        return [
            (empty if entry is None else {**entry.request.inputs, **entry.state})
            | self._control_values(entry)
            for entry in rows
        ]

    def state(self, outputs: Tensors, *, shared: bool) -> Tensors:
        """What the sequence remembers after a run, `shared` with others, with these outputs.

        Raises `InferenceFailed` if the model did not return its state.
        """
        kept: Tensors = {}
        for state in self._states:
            value = outputs.get(state.output_name)
            if value is None:
                raise InferenceFailed(f"the model did not return its state {state.output_name!r}")
            # A view would keep the whole batch in memory for as long as the sequence lives.
            kept[state.input_name] = value.copy() if shared else value
        return kept

    def _control_values(self, entry: _Entry | None) -> Tensors:
        values: Tensors = {}
        for control in self._controls:
            value = np.array([_control_value(control, entry)], NUMPY_TYPES[control.datatype])
            values[control.name] = value.reshape(*self._batch_shape, 1)
        return values


def _control_value(control: Control, entry: _Entry | None) -> object:
    """What a control says of a row; of an empty one, that it is not ready and nothing else."""
    if control.kind is ControlKind.CORRID:
        if control.datatype == "BYTES":
            return b"" if entry is None else str(entry.id).encode()
        return 0 if entry is None else entry.id
    if entry is None:
        return control.false
    says = {
        ControlKind.START: entry.start,
        ControlKind.END: entry.end,
        ControlKind.READY: True,
    }
    return control.true if says[control.kind] else control.false


def _fits(id: int | str, datatype: str) -> bool:
    if isinstance(id, str) or datatype == "BYTES":
        return isinstance(id, str) and datatype == "BYTES"
    limits = np.iinfo(NUMPY_TYPES[datatype])
    return limits.min <= id <= limits.max


def _initial_value(state: State, batch_shape: tuple[int, ...]) -> Array:
    # As in Triton, a dynamic dimension is 1 until the model has returned it with another size.
    shape = (*batch_shape, *(1 if size == DYNAMIC else size for size in state.shape))
    dtype = NUMPY_TYPES[state.datatype]
    if state.initial is None:
        return _zeros(shape, dtype)
    try:
        count = math.prod(shape)
        if state.datatype == "BYTES":
            return np.array(_strings(state.initial, count), dtype).reshape(shape)
        return np.frombuffer(state.initial, dtype, count).reshape(shape)
    except (ValueError, struct.error) as error:
        raise ModelLoadError(
            f"the initial state of {state.input_name!r} does not have shape {list(shape)}: {error}"
        ) from error


def _strings(raw: bytes, count: int) -> list[bytes]:
    """The first `count` strings, each of which comes after its length in four bytes."""
    strings = []
    start = 0
    for _ in range(count):
        (length,) = _LENGTH.unpack_from(raw, start)
        start += _LENGTH.size
        strings.append(raw[start : start + length])
        start += length
    return strings


def _zeros(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Array:
    return np.full(shape, b"" if dtype.kind == "O" else 0, dtype)


def _not_started(model: str, id: int | str) -> InvalidRequest:
    return InvalidRequest(
        f"inference request for sequence {id} to model '{model}' must specify the START flag on"
        f" the first request of the sequence"
    )

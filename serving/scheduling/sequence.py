"""Drives the sequence policy with the event loop, and adds what a model is told of sequences."""

from __future__ import annotations

import asyncio
import math
import struct
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from time import monotonic

import numpy as np

from serving.config import Control, ControlKind, SequenceBatching, State
from serving.engines.base import Engine
from serving.errors import (
    Expired,
    InferenceFailed,
    InvalidRequest,
    ModelLoadError,
    SlipwayError,
    Unavailable,
    shown,
)
from serving.scheduling.batch import BatchLayout
from serving.scheduling.sequence_policy import SequenceBatch, SequencePolicy, Step
from serving.types import DYNAMIC, NUMPY_TYPES, Array, InferRequest, Run, SequenceStep, Tensors

_LENGTH = struct.Struct("<I")


@dataclass(slots=True, eq=False, kw_only=True)
class _Entry(Step):
    request: InferRequest
    answer: asyncio.Future[Tensors]


class SequenceScheduler:
    """Runs the requests of each sequence in order, and batches different sequences.

    Every request that `infer` accepts gets exactly one outcome: it returns, or it raises
    `Expired`, `InferenceFailed`, `InvalidRequest` (its sequence's START was not served),
    `Unavailable` (stopped meanwhile) or, for a caller that goes away, `asyncio.CancelledError`.
    None of these touches another sequence. What becomes of its own sequence when a request is not
    served is the policy's matter; one that failed leaves the implicit state as it was.

    `max_batch_size` 0 is a model without a batch dimension. `layout` knows how rows become a
    batch; without one they are concatenated. `on_run` is told of every run of the engine, with the
    number of requests in it: rows that only fill an empty slot do not count. Raises
    `ModelLoadError` for an initial state that does not have its state's size.
    """

    def __init__(
        self,
        engine: Engine,
        sequences: SequenceBatching,
        *,
        max_batch_size: int,
        instances: int,
        on_run: Callable[[Run], None],
        layout: BatchLayout | None = None,
    ):
        self._engine = engine
        self._tensors = _SequenceTensors(sequences, batches=max_batch_size > 0)
        self._policy = SequencePolicy[_Entry](
            sequences,
            max_rows=max(1, max_batch_size),
            instances=instances,
            initial_state=self._tensors.initial_state,
        )
        self._layout = layout or _DenseLayout(batches=max_batch_size > 0)
        self._on_run = on_run
        self._runs: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._loop = asyncio.get_running_loop()
        self._decision_is_due = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def depth(self) -> int:
        """Requests that wait, not counting those in a running batch."""
        return len(self._policy)

    async def infer(self, request: InferRequest, rows: int) -> Tensors:
        """Wait for the request's turn, run it, return its row of every output.

        The outputs that carry implicit state are among them. Raises `InvalidRequest` for a request
        of several rows, without a sequence id, or of a sequence that is not going on.
        """
        sequence = self._checked(request, rows)
        entry = _Entry(
            id=sequence.id,
            start=sequence.start,
            end=sequence.end,
            shape_key=self._layout.key(request.inputs),
            request=request,
            answer=self._loop.create_future(),
        )
        request.stamps.queued = now = monotonic()
        timeout_at = now + request.timeout_s if request.timeout_s > 0 else math.inf
        self._policy.add(entry, now, deadline=min(request.deadline, timeout_at))
        self._idle.clear()
        self._decide_soon()
        try:
            return await entry.answer
        except asyncio.CancelledError:
            self._policy.discard(entry, monotonic())
            if not entry.answer.cancelled():
                entry.answer.exception()  # seen, and of no use to anyone any more
            self._decide_soon()
            raise

    def give_up(self) -> None:
        """Refuse new requests and fail those that wait. What runs goes on."""
        self._stopping = True
        for entry in self._policy.clear():
            _fail(entry, Unavailable("the server stopped before this request's turn"))
        self._decide_soon()

    async def stop(self) -> None:
        """Refuse new sequences and finish the accepted requests, then refuse everything.

        That takes as long as they take: a run of the engine cannot be interrupted. Live sequences
        can go on meanwhile, but are not waited for when none of their requests is here.
        """
        self._stopping = True
        self._decide()
        await self._idle.wait()

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
        continues = not sequence.start and self._policy.continues(sequence.id)
        if self._stopping and not continues:
            raise Unavailable(f"model {model!r} is being unloaded")
        if not (sequence.start or continues):
            raise _not_started(model, sequence.id)
        return sequence

    def _decide_soon(self) -> None:
        """Decide once in the next turn of the loop, when all that came in this one is queued."""
        if not self._decision_is_due:
            self._decision_is_due = True
            self._loop.call_soon(self._decide)

    def _decide(self) -> None:
        self._decision_is_due = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = monotonic()
        decision = self._policy.decide(now)
        for entry in decision.expired:
            _fail(entry, Expired("Request timeout expired while it waited in the queue"))
        for entry in decision.orphaned:
            _fail(entry, _not_started(entry.request.model_name, entry.id))
        for batch in decision.batches:
            self._start(batch, now)
        if not self._runs and not len(self._policy):
            self._idle.set()
            if self._stopping:
                self._policy.clear()
                return
        if decision.wake_at < math.inf:
            self._timer = self._loop.call_later(max(0.0, decision.wake_at - now), self._decide)

    def _start(self, batch: SequenceBatch[_Entry], now: float) -> None:
        for entry in batch.steps:
            entry.request.stamps.batched = now
        task = self._loop.create_task(self._occupy_instance(batch.steps))
        self._runs.add(task)
        task.add_done_callback(partial(self._instance_is_free, batch))

    def _instance_is_free(self, batch: SequenceBatch[_Entry], task: asyncio.Task[None]) -> None:
        self._runs.discard(task)
        self._policy.finish(batch, monotonic())
        self._decide_soon()

    async def _occupy_instance(self, batch: list[_Entry]) -> None:
        error = await self._run(batch)
        if error is None:
            return
        if len(batch) > 1:
            # One request's values may be what the model cannot bear: only that one shall fail.
            for entry in batch:
                if not entry.answer.done() and (alone := await self._run([entry])) is not None:
                    _fail(entry, alone)
        else:
            _fail(batch[0], error)

    async def _run(self, batch: list[_Entry]) -> SlipwayError | None:
        """Run one batch and hand out its rows, or return why that failed."""
        rows = self._policy.rows(batch)
        batched = monotonic()
        try:
            parts = self._tensors.of(rows)
            inputs = self._layout.stack(parts)
            started = monotonic()
            outputs = await self._engine.infer(inputs)
            computed = monotonic()
            answers = self._layout.split(outputs, parts, [1] * len(parts))
            outcomes = [
                (entry, answer, self._tensors.state(answer, shared=len(rows) > 1))
                for entry, answer in zip(rows, answers, strict=True)
                if entry is not None
            ]
        except SlipwayError as error:
            return error
        except Exception as error:
            failure = InferenceFailed(str(error))
            failure.__cause__ = error
            return failure
        answered = monotonic()
        self._on_run(Run(len(batch), batched, started, computed, answered))
        for entry, answer, state in outcomes:
            entry.state = state
            stamps = entry.request.stamps
            stamps.started, stamps.computed, stamps.answered = started, computed, answered
            if not entry.answer.done():
                entry.answer.set_result(answer)
        return None


class _SequenceTensors:
    """The inputs that no caller sends: controls and implicit state.

    A row is one request's tensors, with a leading dimension of 1 if the model `batches`.
    """

    def __init__(self, sequences: SequenceBatching, *, batches: bool):
        self._controls = sequences.controls
        self._states = sequences.states
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


class _DenseLayout:
    """Rows of equal shapes, concatenated along the batch dimension if there is one."""

    def __init__(self, *, batches: bool):
        self._batches = batches

    def key(self, inputs: Tensors) -> Hashable:
        return tuple((name, tensor.shape) for name, tensor in inputs.items())

    def stack(self, parts: Sequence[Tensors]) -> Tensors:
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def split(
        self, outputs: Tensors, inputs: Sequence[Tensors], rows: Sequence[int]
    ) -> list[Tensors]:
        if not self._batches:
            return [outputs]
        for name, tensor in outputs.items():
            if tensor.shape[:1] != (len(rows),):
                raise InferenceFailed(
                    f"output {name!r} has shape {list(tensor.shape)} for a batch of"
                    f" {len(rows)} rows"
                )
        return [
            {name: tensor[row : row + 1] for name, tensor in outputs.items()}
            for row in range(len(rows))
        ]


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


def _fail(entry: _Entry, error: Exception) -> None:
    if not entry.answer.done():
        entry.answer.set_exception(error)

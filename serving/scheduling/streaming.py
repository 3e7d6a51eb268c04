"""Runs the requests of a decoupled model, each of which has any number of responses."""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from time import monotonic

from serving.engines.base import StreamingEngine
from serving.errors import InferenceFailed, SlipwayError
from serving.scheduling.batch import BatchLayout
from serving.scheduling.outcomes import expired, fail, given_up, unloading
from serving.types import InferRequest, Run, Tensors


class StreamScheduler:
    """Lets at most `instances` requests stream at a time; the others wait in order of arrival.

    A request takes an instance when its turn comes and keeps it until its stream is read to the
    end or closed, so a slow reader holds up nobody while another instance is free. Nothing is
    computed ahead of what is read. `layout` knows what the model sees of a request; `on_run` is
    told of every stream that came to its end.
    """

    def __init__(
        self,
        engine: StreamingEngine,
        *,
        instances: int,
        on_run: Callable[[Run], None],
        layout: BatchLayout,
    ):
        self._engine = engine
        self._layout = layout
        self._instances = self._free = instances
        self._on_run = on_run
        # The turns that are waited for, the next one first.
        self._waiting: OrderedDict[asyncio.Future[None], None] = OrderedDict()
        self._stopping = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._loop = asyncio.get_running_loop()

    @property
    def depth(self) -> int:
        """Requests that wait, not counting those that stream."""
        return len(self._waiting)

    async def stream(self, request: InferRequest, rows: int) -> AsyncGenerator[Tensors, None]:
        """The responses to one request of `rows` rows, as they come.

        The request arrives when the first response is asked for. Whoever does not read to the end
        must `aclose` the iterator, which ends the work. Raises `Expired` (never begun, because its
        `timeout_s` or its deadline was over), `InferenceFailed`, or `Unavailable` (stopped
        meanwhile).
        """
        if self._stopping:
            raise unloading(request.model_name)
        stamps = request.stamps
        stamps.queued = monotonic()
        await self._take_turn(request)
        try:
            stamps.batched = batched = monotonic()
            inputs = self._layout.stack([request.inputs])
            stamps.started = started = monotonic()
            async with aclosing(self._engine.stream(inputs, request.parameters)) as answers:
                while True:
                    try:
                        answer = self._layout.part(await anext(answers), request.inputs)
                    except StopAsyncIteration:
                        break
                    except SlipwayError:
                        raise
                    except Exception as error:
                        raise InferenceFailed(str(error)) from error
                    yield answer
            stamps.computed = stamps.answered = ended = monotonic()
            self._on_run(Run(rows, batched, started, ended, ended))
        finally:
            self._pass_on()

    def give_up(self) -> None:
        """Refuse new requests and fail those that wait. What streams goes on."""
        self._stopping = True
        for turn in self._waiting:
            fail(turn, given_up())

    async def stop(self) -> None:
        """Refuse new requests and finish the accepted ones, however slowly they are read."""
        self._stopping = True
        await self._idle.wait()

    async def _take_turn(self, request: InferRequest) -> None:
        """Returns with an instance taken, or raises without one."""
        expiry = request.deadline
        if request.timeout_s > 0:
            expiry = min(expiry, request.stamps.queued + request.timeout_s)
        if self._free:
            self._free -= 1
            self._idle.clear()
        else:
            await self._wait(expiry)
        if monotonic() >= expiry:
            self._pass_on()
            raise expired()

    async def _wait(self, expiry: float) -> None:
        turn = self._loop.create_future()
        self._waiting[turn] = None
        timer = None
        if expiry < math.inf:
            timer = self._loop.call_later(max(0.0, expiry - monotonic()), fail, turn, expired())
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled() and turn.exception() is None:
                self._pass_on()
            raise
        finally:
            self._waiting.pop(turn, None)
            if timer is not None:
                timer.cancel()

    def _pass_on(self) -> None:
        """Give this request's instance to the next that waits."""
        while self._waiting:
            turn, _ = self._waiting.popitem(last=False)
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
        if self._free == self._instances:
            self._idle.set()

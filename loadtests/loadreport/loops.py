"""The two kinds of load: closed, where clients wait for their answers, and open, where they do not.

An open loop has a schedule: call i is due at i/rate, whatever has become of those before it. Its
latency is counted from then, so a server that stalls is charged for all who would have come
meanwhile. A closed loop sends nothing while it waits, and so hardly notices (this is known as
coordinated omission).
"""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import suppress
from dataclasses import dataclass

from loadreport.calls import Answer
from loadreport.transports import LOST, Reply, Transport

_LEAD_S = 0.05
DRAIN_S = 30.0
"""That answers may take after the last call was sent."""


@dataclass(slots=True)
class Made:
    """A call that was made."""

    call: int
    intended: float
    """When it was due; in a closed loop, when it was sent."""
    reply: Reply


@dataclass(slots=True)
class Load:
    """What was made from `started` to `ended`."""

    started: float
    ended: float
    client_cpu_s: float
    made: list[Made]
    unfinished: int = 0
    """Calls that were answered after the end, and are not counted otherwise."""


async def alone(transport: Transport, calls: int) -> list[Reply]:
    """Each call once, one after the other."""
    return [await transport.ask(call) for call in range(calls)]


async def closed_loop(
    transport: Transport, calls: int, clients: int, seconds: float, first: int = 0
) -> Load:
    """`clients` that each make the next call when they have their answer.

    `first` is the call that they begin with, of the `calls` that they take in turn. What has not
    been answered at the end is not counted.
    """
    made: list[Made] = []
    turn = first

    async def client() -> None:
        nonlocal turn
        while time.monotonic() < until:
            call, turn = turn % calls, turn + 1
            reply = await transport.ask(call)
            made.append(Made(call, reply.sent, reply))

    started, cpu_s = time.monotonic(), time.process_time()
    until = started + seconds
    tasks = [asyncio.create_task(client()) for _ in range(clients)]
    await asyncio.sleep(seconds)
    cpu_s = time.process_time() - cpu_s
    # Those in flight are waited for, so that the next load finds the server idle.
    await asyncio.gather(*tasks)
    counted = [each for each in made if each.reply.ended <= until]
    return Load(started, until, cpu_s, counted, len(made) - len(counted))


async def open_loop(
    transport: Transport, calls: int, rate: float, seconds: float, first: int = 0
) -> Load:
    """`rate` calls a second, due at even times, whether or not there are answers.

    Ends when all are answered. `first` is as for `closed_loop`.
    """
    total = max(1, round(rate * seconds))
    made: list[Made] = []
    tasks: set[asyncio.Task[None]] = set()
    loop = asyncio.get_running_loop()
    all_sent = asyncio.Event()
    started, cpu_s = time.monotonic() + _LEAD_S, time.process_time()

    async def one(number: int) -> None:
        call, intended = (first + number) % calls, started + number / rate
        reply = Reply(time.monotonic(), 0.0, LOST, Answer(b""))
        try:
            reply = await transport.ask(call)
        except asyncio.CancelledError:
            reply.ended = time.monotonic()
        made.append(Made(call, intended, reply))

    def send(numbers: range) -> None:
        for number in numbers:
            task = loop.create_task(one(number))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        if numbers.stop == total:
            all_sent.set()

    def keep_time() -> None:
        """In a thread: it wakes within a fraction of a millisecond, which loops' timers do not."""
        number = 0
        while number < total:
            time.sleep(max(0.0, started + number / rate - time.monotonic()))
            stop = min(total, int((time.monotonic() - started) * rate) + 1)
            with suppress(RuntimeError):  # The loop is closed: somebody has interrupted us.
                loop.call_soon_threadsafe(send, range(number, max(stop, number + 1)))
            number = max(stop, number + 1)

    clock = threading.Thread(target=keep_time, daemon=True)
    clock.start()
    await all_sent.wait()
    if tasks:
        await asyncio.wait(set(tasks), timeout=DRAIN_S)
    late = set(tasks)
    for task in late:
        task.cancel()
    await asyncio.gather(*late)
    ended = max(each.reply.ended for each in made)
    return Load(started, ended, time.process_time() - cpu_s, made)

"""The HTTP front whole: predictions and health ahead, FastAPI for everything else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from starlette.types import ASGIApp, Receive, Scope, Send

from serving.fronts import task_api, v2_http
from serving.fronts.asgi import HTTP_STATUS, TRITON_STATUS, HttpCalls, respond
from serving.fronts.asking import Asking
from serving.fronts.direct import DirectConnection
from serving.fronts.http_connection import Connection
from serving.fronts.known_heads import KnownHeads
from serving.fronts.restricted import Restrictions
from serving.fronts.route import PredictRoute
from serving.fronts.turns import Turns
from serving.server import Server


class HttpFront(NamedTuple):
    """Everything on the HTTP port, and the connections by which it is reached."""

    app: ASGIApp
    connection: type[Connection]
    complete: Callable[[], None]
    """Begins to build, in a thread, what a server can do without at first; else its first caller
    does."""


def build_http(
    server: Server,
    *,
    max_body_bytes: int,
    restrictions: Restrictions,
    strict: bool,
    guard_management: bool,
) -> HttpFront:
    """`strict` answers with Triton's statuses also where ours are better. `guard_management`
    refuses calls that change the server for others, unless they need a key.
    """
    statuses = TRITON_STATUS if strict else HTTP_STATUS
    restrictions = replace(restrictions, guard_management=guard_management)
    asking = Asking(server)
    routes = (
        v2_http.InferRoute(server, max_body_bytes, restrictions, statuses),
        task_api.TaskRoute(server, asking, max_body_bytes, restrictions, statuses),
    )

    class Direct(DirectConnection):
        predictions = routes
        heads = KnownHeads()
        turns = Turns()

    def build() -> ASGIApp:
        from serving.fronts.router import build_router

        return build_router(server, asking, restrictions, max_body_bytes, statuses, strict=strict)

    router = _BuiltLater(build)
    app = _First(routes, server, restrictions, router)
    return HttpFront(HttpCalls(app, server), Direct, router.begin)


class _First:
    """The calls that a server lives for, and those by which one sees that it does, ahead of the
    router, which does all others."""

    def __init__(
        self,
        routes: Sequence[PredictRoute],
        server: Server,
        restrictions: Restrictions,
        router: ASGIApp,
    ):
        self._routes = routes
        self._router = router
        self._health: dict[str, Callable[[], bool]] = {}
        if "health" not in restrictions.keys:
            self._health["/v2/health/live"] = lambda: True
            self._health["/v2/health/ready"] = lambda: server.ready

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            for route in self._routes:
                if (target := route.match(scope["path"])) is not None:
                    await route(*target, scope, receive, send)
                    return
            is_well = self._health.get(scope["path"])
            if is_well is not None and scope["method"] == "GET":
                await respond(send, 200 if is_well() else 400, [], [])
                return
        await self._router(scope, receive, send)


class _BuiltLater:
    """An application that takes long to build. Must be made inside the event loop."""

    def __init__(self, build: Callable[[], ASGIApp]):
        self._build = build
        self._app: asyncio.Future[ASGIApp] | None = None

    def begin(self) -> None:
        if self._app is None:
            self._app = asyncio.ensure_future(asyncio.to_thread(self._build))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.begin()
        assert self._app is not None
        # A caller who goes away takes it from nobody else.
        app = await asyncio.shield(self._app)
        await app(scope, receive, send)

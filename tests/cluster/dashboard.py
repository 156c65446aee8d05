"""A dashboard of Ray that answers as a test says, with jobs that exist in its memory alone."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

Handler = Callable[[web.Request], Any]


class Dashboard:
    """Jobs by id as Ray's server describes them, their logs, and answers instead of an endpoint's own."""

    def __init__(self) -> None:
        self.address = ""
        self.jobs: dict[str, dict[str, Any]] = {}
        self.logs: dict[str, str] = {}
        self.instead: dict[str, list[web.Response | Callable[[], None]]] = {}
        """By `METHOD /path`: answers in order, the last of them for ever."""
        self.pieces: list[list[str]] = []
        """What each connection to a log sends before it breaks; after the last of them the whole log."""
        self.asked: list[str] = []
        self.packages: dict[str, bytes] = {}

    def add(self, job_id: str, status: str = "RUNNING", **facts: Any) -> None:
        self.jobs[job_id] = {
            "type": "SUBMISSION",
            "submission_id": job_id,
            "status": status,
            "entrypoint": "x",
            **facts,
        }
        self.logs.setdefault(job_id, "")


def answer(status: int, text: str = "") -> web.Response:
    return web.Response(status=status, text=text)


@contextmanager
def dashboard() -> Iterator[Dashboard]:
    """The server at `address`, in a thread, until the block ends."""
    board, loop, ready = Dashboard(), asyncio.new_event_loop(), threading.Event()

    async def serve() -> None:
        app = web.Application(middlewares=[_instead(board)], client_max_size=1 << 28)
        app.add_routes(_routes(board))
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        board.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
        ready.set()

    def work() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(serve())
        loop.run_forever()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert ready.wait(30)
    try:
        yield board
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)


def _instead(board: Dashboard) -> Any:
    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> Any:
        key = f"{request.method} {request.path}"
        board.asked.append(key)
        answers = board.instead.get(key)
        if not answers:
            return await handler(request)
        chosen = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(chosen, web.Response):
            return web.Response(status=chosen.status, text=chosen.text)
        chosen()
        return await handler(request)

    return middleware


def _routes(board: Dashboard) -> list[web.RouteDef]:
    async def version(request: web.Request) -> web.Response:
        return web.json_response({"version": "4", "ray_version": "2.60.0", "ray_commit": "", "session_name": "one"})

    async def jobs(request: web.Request) -> web.Response:
        return web.json_response(list(board.jobs.values()))

    async def job(request: web.Request) -> web.Response:
        found = board.jobs.get(request.match_info["id"])
        return web.json_response(found) if found else answer(404, f"Job {request.match_info['id']} does not exist")

    async def submit(request: web.Request) -> web.Response:
        wanted = await request.json()
        if wanted["submission_id"] in board.jobs:
            return answer(
                400, f"Traceback\nValueError: Job with submission_id {wanted['submission_id']} already exists."
            )
        board.add(wanted["submission_id"], **{key: value for key, value in wanted.items() if key != "submission_id"})
        return web.json_response({"job_id": wanted["submission_id"], "submission_id": wanted["submission_id"]})

    async def stop(request: web.Request) -> web.Response:
        board.jobs[request.match_info["id"]]["status"] = "STOPPED"
        return web.json_response({"stopped": True})

    async def delete(request: web.Request) -> web.Response:
        del board.jobs[request.match_info["id"]]
        return web.json_response({"deleted": True})

    async def log(request: web.Request) -> web.Response:
        return web.json_response({"logs": board.logs[request.match_info["id"]]})

    async def package(request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if request.method == "PUT":
            board.packages[name] = await request.read()
        return answer(200 if name in board.packages else 404)

    return [
        web.get("/api/version", version),
        web.get("/api/jobs/", jobs),
        web.get("/api/jobs/{id}", job),
        web.post("/api/jobs/", submit),
        web.post("/api/jobs/{id}/stop", stop),
        web.delete("/api/jobs/{id}", delete),
        web.get("/api/jobs/{id}/logs", log),
        web.get("/api/jobs/{id}/logs/tail", _tail(board)),
        web.get("/api/packages/{kind}/{name}", package),
        web.put("/api/packages/{kind}/{name}", package),
        web.get("/api/v0/nodes", _nodes),
    ]


async def _nodes(request: web.Request) -> web.Response:
    rows = [{"state": "ALIVE", "resources_total": {"CPU": 4.0}}, {"state": "DEAD", "resources_total": {"CPU": 64.0}}]
    return web.json_response({"data": {"result": {"result": rows}}})


def _tail(board: Dashboard) -> Handler:
    async def tail(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        job_id = request.match_info["id"]
        for piece in board.pieces[0] if board.pieces else [board.logs[job_id]]:
            await socket.send_str(piece)
        if board.pieces:
            board.pieces.pop(0)
            assert request.transport is not None
            await asyncio.sleep(0.05)
            request.transport.abort()  # as a proxy that times out
        else:
            board.jobs[job_id].setdefault("driver_exit_code", 0)
            board.jobs[job_id]["status"] = "FAILED" if board.jobs[job_id]["driver_exit_code"] else "SUCCEEDED"
        return socket

    return tail

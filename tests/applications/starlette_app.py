"""A web application on Starlette; SITE names its directory of files. It knows nothing of trio-uring."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import AsyncIterator

import anyio
from served import facts
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket, WebSocketDisconnect

SITE = anyio.Path(os.environ["SITE"])


async def backend(_request: Request) -> Response:
    return JSONResponse(facts())


async def greet(request: Request) -> Response:
    return JSONResponse({"hello": request.query_params["name"]})


async def stream(_request: Request) -> Response:
    async def lines() -> AsyncIterator[bytes]:
        for number in range(200):
            yield b"%d\n" % number * 100
            await anyio.lowlevel.checkpoint()

    return StreamingResponse(lines(), media_type="text/plain")


async def file(request: Request) -> Response:
    return FileResponse(SITE / request.path_params["name"], filename="download.bin")


async def upload(request: Request) -> Response:
    async with request.form() as form:
        sent = form["file"]
        assert isinstance(sent, UploadFile)
        digest = hashlib.sha256()
        while part := await sent.read(100_000):
            digest.update(part)
        return JSONResponse({"name": sent.filename, "note": form["note"], "digest": digest.hexdigest()})


async def store(request: Request) -> Response:
    """The body goes to a file as it comes, and the answer is what the file holds."""
    path = SITE / request.path_params["name"]
    try:
        async with await anyio.open_file(path, "wb") as target:
            async for part in request.stream():
                await target.write(part)
    except ClientDisconnect:
        return Response(status_code=400)
    return Response(hashlib.sha256(await path.read_bytes()).hexdigest())


async def hold(_request: Request) -> Response:
    """An answer that ends when there is a file called `release`."""

    async def body() -> AsyncIterator[bytes]:
        yield b"begun\n"
        while not await (SITE / "release").exists():  # noqa: ASYNC110 - another process makes it
            await anyio.sleep(0.01)
        yield b"ended\n"

    return StreamingResponse(body())


async def echo(socket: WebSocket) -> None:
    await socket.accept()
    try:
        while True:
            message = await socket.receive_text()
            await socket.send_text(message[::-1])
    except WebSocketDisconnect:
        pass


async def version(socket: WebSocket) -> None:
    """Says over which version of HTTP it runs."""
    await socket.accept()
    await socket.send_text(socket.scope["http_version"])
    await socket.receive()


@contextlib.asynccontextmanager
async def lifespan(_app: Starlette) -> AsyncIterator[None]:
    """The process does not end while there is a file called `stay`."""
    yield
    while await (SITE / "stay").exists():  # noqa: ASYNC110 - another process removes it
        await anyio.sleep(0.01)


app = Starlette(
    lifespan=lifespan,
    routes=[
        Route("/backend", backend),
        Route("/greet", greet),
        Route("/stream", stream),
        Route("/file/{name}", file),
        Route("/upload", upload, methods=["POST"]),
        Route("/store/{name}", store, methods=["PUT"]),
        Route("/hold", hold),
        WebSocketRoute("/echo", echo),
        WebSocketRoute("/version", version),
        Mount("/static", StaticFiles(directory=str(SITE))),
    ],
)

"""A web application on AnyIO: Starlette, served by Hypercorn's trio worker. It knows nothing of trio-uring."""

from pathlib import Path

import anyio
import anyio.lowlevel
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles


async def hello(request: Request) -> Response:
    await anyio.lowlevel.checkpoint()
    return JSONResponse({"hello": request.query_params.get("name", "world")})


app = Starlette(routes=[Route("/hello", hello), Mount("/docs", StaticFiles(directory=Path(__file__).parent.parent))])

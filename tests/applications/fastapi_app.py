"""A web application on FastAPI: models, dependencies, synchronous handlers in threads. It knows nothing of trio-uring."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import anyio
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, UploadFile
from pydantic import BaseModel
from served import facts

done: list[str] = []


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    async with anyio.create_task_group() as group:
        yield {"group": group}
        group.cancel_scope.cancel()


app = FastAPI(lifespan=lifespan)


class Item(BaseModel):
    """What is posted."""

    name: str
    price: float


@app.get("/backend")
async def backend() -> dict[str, object]:
    return facts()


@app.post("/items")
async def create(item: Item, background: BackgroundTasks) -> Item:
    background.add_task(done.append, item.name)
    return Item(name=item.name.upper(), price=item.price * 2)


@app.get("/done")
async def finished() -> list[str]:
    return done


@app.get("/thread")
def in_a_thread() -> bool:
    """A synchronous handler, which runs in a worker thread."""
    return threading.current_thread() is not threading.main_thread()


async def opened() -> AsyncIterator[list[int]]:
    yield [1, 2, 3]


@app.get("/sum")
async def total(numbers: Annotated[list[int], Depends(opened)], more: int) -> int:
    if more < 0:
        raise HTTPException(status_code=418, detail="too little")
    return sum(numbers) + more


@app.post("/size")
async def size(file: UploadFile) -> int:
    return len(await file.read())

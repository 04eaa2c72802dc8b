"""A search service: `python -m uvicorn docs.integrations.service:app`. The variable INDEX names the index."""

import os
from collections.abc import AsyncIterator
from tempfile import NamedTemporaryFile
from threading import Lock
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Query, Request

from rrt import InputError
from rrt.index import Index

app, index = FastAPI(), Index(os.environ["INDEX"])  # one network in a process
reading = Lock()  # a large photo takes gigabytes while it is decoded


async def sent_photo(request: Request) -> AsyncIterator[str]:
    with NamedTemporaryFile(buffering=0) as file:
        async for part in request.stream():
            file.write(part)
            if file.tell() > 10_000_000:
                raise HTTPException(413, "the photo has more than 10 MB: make it smaller")
        yield file.name


@app.get("/health")
async def health() -> dict[str, str]:
    return {"status": "ok"}


@app.post("/search")  # no `async`: it runs in a thread, and other requests go on
def search(path: Annotated[str, Depends(sent_photo)], top: Annotated[int, Query(ge=1, le=100)] = 10) -> list[dict]:
    try:
        with reading:
            query = index.reranker.embed(path)
    except InputError as error:
        raise HTTPException(400, str(error).replace(path, "sent")) from error
    (found,) = index.search(query, top, rerank=index.num_candidates())
    return [{"photo": it.photo, "score": it.score, "cosine": it.cosine, "probability": it.probability} for it in found]

"""`POST /answer`: a question and its passage in, the span that answers it out. The route of engines that mark spans.

What a head answers is its own, so each kind of head has a file like this one; `serve/server.py` has the table of them.
"""

import time
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from configs.errors import UserError
from serve import runners_up
from serve.config import ServerConfig
from serve.engines import Engine, Engines
from serve.guard import in_json
from serve.metrics import Metrics
from serve.protocol import checked, takes
from serve.waiting import apart, body, outcome

TASK = "squad"


class Ask(BaseModel):
    """The body of POST /answer."""

    model_config = ConfigDict(strict=True, extra="forbid")
    question: str = Field(min_length=1)
    context: str = Field(min_length=1, description="the passage that has the answer")
    model: str | None = Field(None, max_length=100, description="an engine's name; none: the first one")
    deadline_ms: float | None = Field(None, gt=0, allow_inf_nan=False, description="then the answer is not wanted")
    priority: int = Field(0, ge=-9, le=9, description="the less the sooner")
    runners_up: int = Field(0, ge=0, le=20, description="so many further spans; they cost a second inference")


def router(config: ServerConfig, engines: Engines, metrics: Metrics) -> APIRouter:
    """The route."""
    routes = APIRouter()

    @routes.post("/answer", openapi_extra=takes(Ask))
    async def answer(request: Request) -> Response:
        ask = checked(Ask, await body(request))
        if (count := len(ask.question) + len(ask.context)) > config.max_characters:
            raise UserError(f"question and context have {count:,} characters, the limit is {config.max_characters:,}")
        end = time.monotonic() + min(ask.deadline_ms or config.deadline_ms, config.deadline_ms) / 1000
        with engines.use(ask.model) as engine:
            if engine.task != TASK:
                raise UserError(f"the engine {engine.name} is for {engine.task}, and /answer for {TASK}")
            request.state.facts["model"] = engine.name
            left = 1000 * (end - time.monotonic())
            future = engine.batcher.submit(ask.question, ask.context, deadline_ms=left, priority=ask.priority)
            served = await outcome(request, future, left)
            engine.proven = time.monotonic()
            others = await _runners_up(request, engine, ask, end) if ask.runners_up else []
        found, timing = served.answer, served.timing
        metrics.served(engine.name, timing)
        stages = {name: round(getattr(timing, name), 3) for name in _fields(timing)}
        request.state.facts.update(stages, served_ms=timing.total_ms)
        told = {name: getattr(found, name) for name in _fields(found)}
        told = {"answer": told.pop("text"), **told, "model": engine.name, "timing": stages}
        return in_json(told | ({"runners_up": [asdict(other) for other in others]} if ask.runners_up else {}))

    return routes


async def _runners_up(request: Request, engine: Engine, ask: Ask, end: float) -> list[runners_up.RunnerUp]:
    """Those asked for, by the same deadline. Raises: as `outcome`."""
    features, batches = await apart(runners_up.cut, engine.reader, ask.question, ask.context)
    futures = []
    try:
        for batch in batches:
            left = 1000 * (end - time.monotonic())
            futures.append(engine.batcher.submit_packed(batch, deadline_ms=left, priority=ask.priority))
        logits = [await outcome(request, future, 1000 * (end - time.monotonic())) for future in futures]
    finally:
        for future in futures:
            future.cancel()
    return await apart(runners_up.find, engine.reader, features, logits, ask.context, ask.runners_up)


def _fields(record: Any) -> list[str]:
    return list(record.__dataclass_fields__)

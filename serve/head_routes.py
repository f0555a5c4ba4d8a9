"""`POST /answer`, `/classify`, `/regress`, `/tag`, `/embed`, `/encode`: a request of a head in, its response out.

A route for every head of `heads/`, made of what the head says of itself (`Head.path`, `fields`, `gives`). All of them
stand there from the start, since an engine may be loaded later; each refuses an engine of another head. `GET /engine`
says which of them an engine has, and what it asks: the page makes its form of that.
"""

import time
from collections.abc import Mapping
from dataclasses import fields as fields_of
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, create_model

import heads
from configs.errors import UserError
from heads import Head
from heads.head import characters
from serve.batcher import Timing
from serve.config import ServerConfig
from serve.direct import Endpoint
from serve.engines import Engine, Engines
from serve.guard import in_json
from serve.metrics import Metrics
from serve.protocol import checked, takes
from serve.waiting import body, outcome

MOST_TEXTS = 100_000  # of a list; what they hold together, --max-characters limits
TIMES = tuple(field.name for field in fields_of(Timing))
KINDS: dict[str, dict[str, Any]] = {
    "text": {"type": "string"}, "whole": {"type": "integer"}, "number": {"type": "number"},
    "numbers": {"type": "array", "items": {"type": "number"}}, "json": {},
}  # fmt: skip


class Ask(BaseModel):
    """What the body of every head's route may hold beside the head's own fields."""

    model_config = ConfigDict(strict=True, extra="forbid")
    model: str | None = Field(None, max_length=100, description="an engine's name; none: the first one")
    deadline_ms: float | None = Field(None, gt=0, allow_inf_nan=False, description="then the answer is not wanted")
    priority: int = Field(0, ge=-9, le=9, description="the less the sooner")


def endpoints(config: ServerConfig, engines: Engines, metrics: Metrics) -> dict[str, Endpoint]:
    """Each head's path and what is called for a POST to it."""
    return {path: _endpoint(path, head, config, engines, metrics) for path, head in heads.by_path().items()}


def router(called: Mapping[str, Endpoint], engines: Engines) -> APIRouter:
    """All routes."""
    routes = APIRouter()
    for path, head in heads.by_path().items():
        about = takes(asked(head)) | {"responses": {"200": {"description": head.title, "content": given(head)}}}
        routes.add_api_route(path, called[path], methods=["POST"], openapi_extra=about, name=path[1:])

    @routes.get("/engine")
    async def engine(model: str | None = None) -> Response:
        with engines.use(model) as engine:
            return in_json(described(engine))

    return routes


def asked(head: type[Head]) -> type[BaseModel]:
    """The body of a head's route."""
    fields: dict[str, Any] = {}
    for name, field in head.fields.items():
        kind: Any = list[str] if field.many else str
        bounds: dict[str, Any] = {"min_length": 1} | ({"max_length": MOST_TEXTS} if field.many else {})
        default = ... if field.needed else None
        fields[name] = (kind if field.needed else kind | None, Field(default, description=field.about, **bounds))
    if head.most_runners_up:
        about = "so many further answers, from the next best one down"
        fields["runners_up"] = (int, Field(0, ge=0, le=head.most_runners_up, description=about))
    return create_model(f"Ask{head.__name__}", __base__=Ask, __doc__=f"The body of POST {head.path()}.", **fields)


def given(head: type[Head]) -> dict[str, Any]:
    """OpenAPI's description of a response of 200."""
    properties = {name: KINDS[kind.removesuffix("?")] for name, kind in head.gives.items()}
    properties |= {"model": {"type": "string"}, "timing": {"type": "object"}}
    needed = [name for name in properties if not head.gives.get(name, "").endswith("?")]
    return {"application/json": {"schema": {"type": "object", "properties": properties, "required": needed}}}


def described(engine: Engine) -> dict[str, Any]:
    """{"model", "route", "invites", "fields": [{"name", "title", "needed", "long", ...}], "runners_up"}."""
    head = engine.head
    fields = [{"name": name, **field._asdict()} for name, field in head.fields.items()]
    return {
        "model": engine.name, "task": head.task, "title": head.title, "route": head.path(), "invites": head.invites,
        "fields": fields, "runners_up": head.most_runners_up,
    }  # fmt: skip


def _endpoint(path: str, head: type[Head], config: ServerConfig, engines: Engines, metrics: Metrics) -> Endpoint:
    kind = asked(head)

    async def respond(request: Request) -> Response:
        ask: Any = checked(kind, await body(request))
        fields = {name: value for name in head.fields if (value := getattr(ask, name)) is not None}
        if (count := characters(fields)) > config.max_characters:
            raise UserError(f"{' and '.join(fields)} have {count:,} characters, the limit is {config.max_characters:,}")
        end = time.monotonic() + min(ask.deadline_ms or config.deadline_ms, config.deadline_ms) / 1000
        with engines.use(ask.model) as engine:
            if engine.head.path() != path:
                raise UserError(
                    f"the engine {engine.name} is for --task {engine.head.task}: ask it by POST {engine.head.path()}"
                )
            request.state.facts["model"] = engine.name
            left = 1000 * (end - time.monotonic())
            more = {"runners_up": ask.runners_up} if head.most_runners_up else {}
            future = engine.batcher.submit(fields, deadline_ms=left, priority=ask.priority, **more)
            served = await outcome(request, future, left)
            engine.proven = time.monotonic()
        metrics.served(engine.name, served.timing)
        stages = {name: round(getattr(served.timing, name), 3) for name in TIMES}
        request.state.facts.update(stages, served_ms=served.timing.total_ms)
        return in_json({**served.response, "model": engine.name, "timing": stages})

    return respond

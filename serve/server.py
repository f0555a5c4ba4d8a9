"""The server: requests over HTTP, by a head's route or by the Open Inference Protocol, for one engine or several.

    app = create_app(config)            # FastAPI, with the engines of the settings open

`serve/listen.py` runs it under uvicorn. What a route raises becomes a status and a sentence in `serve/guard.py`. The
routes only read, hand on to a batcher and wait: for the answer, the deadline, or the client's leaving, which takes the
request out of the queue.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse
from starlette.exceptions import HTTPException

from configs import __version__
from configs.errors import UserError
from serve import head_routes, protocol, quiet, repository
from serve.config import ServerConfig
from serve.direct import Direct
from serve.engines import Engines, UnknownEngineError, opener
from serve.guard import Guard, RefusedError, in_json
from serve.metrics import CONTENT_TYPE, Metrics
from serve.protocol import takes
from serve.waiting import apart, body, outcome, shared

PAGE = Path(__file__).parent / "page"
FILES = {
    "/": ("index.html", "text/html"), "/page.js": ("page.js", "text/javascript"), "/page.css": ("page.css", "text/css")
}  # fmt: skip
ANYONE = frozenset({"/v2/health/live", "/v2/health/ready", *FILES})  # without the secret
INFER = ("/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer")
READY_S = 5.0  # for the inference that proves that an engine is ready


def create_app(config: ServerConfig, engines: Engines | None = None, metrics: Metrics | None = None) -> FastAPI:
    """The application. Without `engines` those of the settings are opened; they are closed with the application.

    Raises: UserError where an engine cannot be opened or the secret cannot be read.
    """
    token = secret(config.token_file)
    metrics = metrics or Metrics()
    engines = engines or opened(config, metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await apart(engines.close)

    app = FastAPI(title="Retort", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_exception_handler(HTTPException, _http_error)
    posts = head_routes.endpoints(config, engines, metrics)
    app.include_router(head_routes.router(posts, engines))

    @app.get("/v2/health/live")
    async def live() -> Response:
        return in_json({})

    @app.get("/v2/health/ready")
    async def server_ready() -> Response:
        await asyncio.gather(*(ready(engines, name) for name in engines.names() or [None]))
        return in_json({})

    @app.get("/v2")
    async def about() -> Response:
        extensions = ["binary_tensor_data", "model_repository"]
        about = {"name": "retort", "version": __version__, "extensions": extensions}
        return in_json(about | {"worker": os.getpid()})  # of several, the one that answered

    @app.get("/v2/models/{model}")
    @app.get("/v2/models/{model}/versions/{version}")
    async def describe(model: str, version: str = protocol.VERSION) -> Response:
        with _used(engines, model, version) as engine:
            return in_json(protocol.metadata(model, engine.reader.session))

    @app.get("/v2/models/{model}/ready")
    @app.get("/v2/models/{model}/versions/{version}/ready")
    async def model_ready(model: str, version: str = protocol.VERSION) -> Response:
        with _used(engines, model, version):
            await ready(engines, model)
        return in_json({})

    @app.post(INFER[0], openapi_extra=takes(protocol.InferRequest))
    @app.post(INFER[1], openapi_extra=takes(protocol.InferRequest))
    async def infer(request: Request, model: str, version: str = protocol.VERSION) -> Response:
        with _used(engines, model, version) as engine:
            request.state.facts["model"] = engine.name
            outputs = engine.reader.manifest.outputs
            asked, packed = protocol.parse(await body(request), request.headers.get(protocol.HEADER), outputs)
            deadline = asked.deadline_ms(config.deadline_ms)
            future = engine.batcher.submit_packed(packed, deadline_ms=deadline, priority=asked.priority())
            arrays = await outcome(request, future, deadline)
            engine.proven = time.monotonic()
        told, head = protocol.answer(asked, model, outputs, arrays)
        if head is None:
            return Response(told, media_type="application/json")
        return Response(told, media_type="application/octet-stream", headers={protocol.HEADER: str(head)})

    posts |= dict.fromkeys(INFER, infer)
    app.add_middleware(Direct, posts=posts)  # type: ignore[arg-type]
    app.add_middleware(Guard, metrics=metrics, max_bytes=config.max_bytes, token=token, anyone=ANYONE)  # type: ignore[arg-type]
    app.include_router(repository.router(engines, bool(token)))

    @app.get("/metrics")
    async def measured() -> Response:
        return Response(metrics.text(), headers={"content-type": CONTENT_TYPE})

    for path, (name, kind) in FILES.items():
        app.add_api_route(path, _file(PAGE / name, kind), methods=["GET"], include_in_schema=False)
    return app


def opened(config: ServerConfig, metrics: Metrics) -> Engines:
    """The engines of the settings, each proven by an inference. Raises: UserError."""
    root = Path(config.root) if config.root else None
    if root and not root.is_dir():
        raise UserError(f"--root {root} is no folder; it is the one whose engine folders may be loaded")
    engines = Engines(opener(config), root, config.drain_s, metrics.watch, quiet.settle)
    try:
        folder = Path(config.engine)
        engines.load(folder.resolve().name, folder)
        for name in config.load:
            engines.load_below(name)
    except BaseException:
        engines.close()
        raise
    return engines


def secret(path: str | None) -> str | None:
    """The text of --token-file without white space around it. Raises: UserError."""
    if path is None:
        return None
    try:
        text = Path(path).read_text(encoding="ascii")[:10_000].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--token-file {path} cannot be read ({error}); give a file with one line of ASCII") from error
    if len(text) < 16 or not text.isprintable() or " " in text:
        raise UserError(f"--token-file {path} has no secret of 16 or more characters; `openssl rand -hex 32` makes one")
    return text


async def ready(engines: Engines, name: str | None) -> None:
    """Raises: RefusedError (503) where the engine does not answer within READY_S."""
    try:
        with engines.use(name) as engine:
            await asyncio.wait_for(shared(engine.proof(READY_S)), READY_S)
    except Exception as error:
        raise RefusedError(503, f"{name or 'no engine'} is not ready: {type(error).__name__}") from error


def _used(engines: Engines, model: str, version: str) -> Any:
    if version != protocol.VERSION:
        raise UnknownEngineError(f"every engine has the version {protocol.VERSION} alone; got {version[:40]!r}")
    return engines.use(model)


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    raise RefusedError(error.status_code, str(error.detail))


def _file(path: Path, kind: str) -> Any:
    async def page() -> Response:
        return FileResponse(path, media_type=kind)

    return page

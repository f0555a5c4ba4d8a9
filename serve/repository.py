"""Engines loaded, swapped and unloaded over HTTP: from below one root folder, and with the secret only.

    POST /v2/repository/index                   what is loaded, and what could be
    POST /v2/repository/models/NAME/load        root/NAME under that name; {"parameters": {"folder": "student-2"}} takes
                                                root/student-2 for it. If NAME is in service it is swapped
    POST /v2/repository/models/NAME/unload
"""

from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from configs.errors import UserError
from serve.engines import Engines
from serve.guard import RefusedError, in_json
from serve.protocol import checked, takes
from serve.waiting import apart, body


class Change(BaseModel):
    """The body of a load."""

    parameters: dict[str, Any] = {}


def router(engines: Engines, guarded: bool) -> APIRouter:
    """The routes; where no secret guards them (`guarded` false) they refuse everything."""
    routes = APIRouter(prefix="/v2/repository")

    def keeper() -> None:
        if not guarded:
            raise RefusedError(403, "engines are loaded and unloaded with a secret only; start with --token-file")

    @routes.post("/index")
    async def index() -> Response:
        keeper()
        return in_json(await apart(engines.index))

    @routes.post("/models/{model}/load", openapi_extra=takes(Change, required=False))
    async def load(request: Request, model: str) -> Response:
        keeper()
        raw = await body(request)
        parameters = checked(Change, raw).parameters if raw else {}
        if unknown := sorted(set(parameters) - {"folder"}):
            raise UserError(f"the parameter {unknown[0][:100]!r} is not known; there is 'folder', below the root")
        folder = parameters.get("folder", model)
        if not isinstance(folder, str):
            raise UserError("the parameter 'folder' takes the name of an engine folder below the root")
        request.state.facts["model"] = model[:100]
        engine = await apart(engines.load_below, model, folder)
        return in_json({"name": engine.name, "folder": engine.folder.name, "why": engine.reader.session.why})

    @routes.post("/models/{model}/unload")
    async def unload(request: Request, model: str) -> Response:
        keeper()
        request.state.facts["model"] = model[:100]
        await apart(engines.unload, model)
        return in_json({})

    return routes

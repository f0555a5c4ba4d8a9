"""The routes that nearly all requests take, straight from the guard to their functions.

FastAPI tries its routes one after the other and then looks for dependencies, validation and clean-up that ours have
none of: about a third of what the server adds to a short request, timed once, and Python is what limits it. It keeps
all else: these routes stand in its OpenAPI description, and what is no POST to one of them is still its.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import compile_path

Endpoint = Callable[..., Awaitable[Response]]  # (request, what the pattern names) -> response


@dataclass(frozen=True, slots=True)
class Found:
    """Stands in the scope as FastAPI's route would: metrics are counted by its pattern."""

    path: str


class Direct:
    """ASGI middleware, the innermost."""

    def __init__(self, app: Any, *, posts: Mapping[str, Endpoint]) -> None:
        """posts: pattern of a path, `/answer` or `/v2/models/{model}/infer`, to what is called for a POST to it."""
        self._app = app
        self._whole = {path: (Found(path), endpoint) for path, endpoint in posts.items() if "{" not in path}
        self._patterns = [
            (compile_path(path)[0], Found(path), endpoint) for path, endpoint in posts.items() if "{" in path
        ]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self._app(scope, receive, send)
        found, endpoint, named = self._find(scope["path"])
        if endpoint is None:
            return await self._app(scope, receive, send)
        scope["route"] = found
        response = await endpoint(Request(scope, receive, send), **named)
        return await response(scope, receive, send)

    def _find(self, path: str) -> tuple[Found | None, Endpoint | None, dict[str, str]]:
        found, endpoint = self._whole.get(path, (None, None))
        if endpoint is not None:
            return found, endpoint, {}
        for pattern, found, endpoint in self._patterns:
            if match := pattern.match(path):
                return found, endpoint, match.groupdict()
        return None, None, {}

"""Posts that go straight from the guard to their functions, and all else that does not."""

import asyncio

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from serve.direct import Direct

OTHERS = "FastAPI"


async def others(scope, receive, send) -> None:
    await PlainTextResponse(OTHERS)(scope, receive, send)


async def answer(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"answer {(await request.body()).decode()}")


async def infer(request: Request, model: str, version: str = "1") -> PlainTextResponse:
    return PlainTextResponse(f"infer {model} {version}")


APP = Direct(others, posts={"/answer": answer, "/m/{model}/infer": infer, "/m/{model}/v/{version}/infer": infer})


def asked(method: str, path: str, kind: str = "http") -> tuple[str, str | None]:
    """(the response's body, the pattern that its metrics are counted by)."""
    scope, said = {"type": kind, "method": method, "path": path, "headers": []}, []

    async def receive() -> dict:
        return {"type": "http.request", "body": b"me"}

    async def send(message: dict) -> None:
        said.append(message.get("body", b""))

    asyncio.run(APP(scope, receive, send))
    return b"".join(said).decode(), getattr(scope.get("route"), "path", None)


@pytest.mark.parametrize(("path", "body", "pattern"), [
    ("/answer", "answer me", "/answer"),
    ("/m/a/infer", "infer a 1", "/m/{model}/infer"),
    ("/m/a b/v/2/infer", "infer a b 2", "/m/{model}/v/{version}/infer"),
])  # fmt: skip
def test_a_post_to_one_of_them_is_its_functions(path, body, pattern):
    assert asked("POST", path) == (body, pattern)


@pytest.mark.parametrize(("method", "path"), [
    ("GET", "/answer"), ("POST", "/answer/"), ("POST", "/m/a/b/infer"), ("POST", "/m//infer"), ("POST", "/"),
    ("POST", "/m/a/infer/"), ("POST", "/x/m/a/infer"),
])  # fmt: skip
def test_all_else_is_fastapis(method, path):
    assert asked(method, path) == (OTHERS, None)


def test_what_is_no_request_is_passed_on():
    seen = []

    async def app(scope, receive, send) -> None:
        seen.append(scope["type"])

    asyncio.run(Direct(app, posts={"/answer": answer})({"type": "lifespan"}, None, None))
    assert seen == ["lifespan"]

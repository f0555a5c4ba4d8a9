"""Several engines in one server: loaded, swapped and unloaded over HTTP, and no request is lost on the way."""

import asyncio
import shutil
import threading
from concurrent.futures import Future

import httpx
import pytest
import serve_kit
import server_kit
from server_kit import ASK, HEADERS, Held, Served, until

import heads
from configs.errors import UserError
from serve.engines import BusyError, Engine, Engines


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two good engines, of which "silent" answers nothing, and a broken one."""
    root = tmp_path_factory.mktemp("root")
    serve_kit.write(root / "tiny")
    serve_kit.write(root / "silent", no_answer_threshold=-100.0)
    serve_kit.write(root / "broken")
    (root / "broken" / "model.onnx").write_bytes(b"x")
    return root


@pytest.fixture
def served(root, tmp_path):
    config = server_kit.settings(root / "tiny", "--root", root, *server_kit.with_token(tmp_path))
    served = Served(config, root=root)
    yield served
    served.close()


def change(served: Served, name: str, what: str = "load", **parameters) -> httpx.Response:
    path = f"/v2/repository/models/{name}/{what}"
    return served.ask("POST", path, json={"parameters": parameters}, headers=HEADERS)


def answer(served: Served, **more) -> str:
    response = served.ask("POST", "/answer", json=ASK | more, headers=HEADERS)
    return response.json()["answer"] if response.status_code == 200 else str(response.status_code)


def test_engines_stand_side_by_side_and_go(served):
    assert change(served, "silent").status_code == 200
    assert answer(served, model="silent") == ""
    assert answer(served) == "Ada Lovelace"
    index = served.ask("POST", "/v2/repository/index", headers=HEADERS).json()
    assert {row["name"]: row["state"] for row in index} == {
        "tiny": "READY", "silent": "READY", "broken": "UNAVAILABLE"
    }  # fmt: skip
    silent = served.engine("silent")
    assert change(served, "silent", "unload").status_code == 200
    assert answer(served, model="silent") == "404"
    with pytest.raises(Exception, match="stopping"):
        silent.batcher.submit(ASK).result(5)
    assert change(served, "silent", "unload").status_code == 404
    assert 'model="silent"' not in "".join(
        line for line in served.ask("GET", "/metrics", headers=HEADERS).text.splitlines(True) if "batcher" in line
    )


def test_a_swap_under_load_loses_no_request(served):
    async def load(client: httpx.AsyncClient) -> list[tuple[int, str]]:
        seen, going = [], True

        async def keep_asking() -> None:
            while going:
                response = await client.post("/answer", json=ASK, headers=HEADERS)
                seen.append((response.status_code, response.json().get("answer")))

        clients = [asyncio.create_task(keep_asking()) for _ in range(8)]
        for folder in ("silent", "tiny", "silent"):
            before = len(seen)
            await until(lambda before=before: len(seen) > before + 20)
            path = "/v2/repository/models/tiny/load"
            response = await client.post(path, json={"parameters": {"folder": folder}}, headers=HEADERS)
            assert response.status_code == 200, response.text
        going = False
        await asyncio.gather(*clients)
        return seen

    seen = served.run(load)
    assert {status for status, _ in seen} == {200}
    assert {text for _, text in seen} == {"Ada Lovelace", ""}
    assert answer(served) == ""


def test_who_was_queued_on_the_old_engine_gets_its_answer(served):
    engine = served.engine()
    engine.batcher = held = Held(engine.batcher)

    async def swap(client: httpx.AsyncClient) -> None:
        asked = asyncio.create_task(client.post("/answer", json=ASK, headers=HEADERS))
        await until(lambda: held.futures)
        path, body = "/v2/repository/models/tiny/load", {"parameters": {"folder": "silent"}}
        swapped = asyncio.create_task(client.post(path, json=body, headers=HEADERS))
        await until(lambda: served.engine() is not engine)
        told = await client.post("/answer", json=ASK, headers=HEADERS)
        assert told.json()["answer"] == ""
        assert not asked.done()
        assert not swapped.done()
        await asyncio.to_thread(held.answer)
        assert (await asked).json()["answer"] == "Ada Lovelace"
        assert (await swapped).status_code == 200

    served.run(swap)


def test_an_engine_that_is_broken_is_not_put_in_service(served):
    response = change(served, "tiny", folder="broken")
    assert response.status_code == 400
    assert "model.onnx has 1 bytes" in response.json()["error"]
    assert answer(served) == "Ada Lovelace"


class Stub:
    """A reader, its session and its batcher in one, of which the inference fails or the device hangs."""

    head = heads.default()

    def __init__(self, hangs: bool = False) -> None:
        self.session, self.manifest, self.task = self, self, "squad"
        self.hangs, self.closed, self.abandoned = hangs, list[str](), False

    def submit(self, *_, **__) -> Future:
        future: Future = Future()
        if not self.hangs:
            future.set_exception(RuntimeError("no device"))
        return future

    def drain(self, timeout_s: float) -> bool:
        return not self.hangs

    def close(self, timeout_s: float | None = None) -> bool:
        self.closed.append("batcher" if timeout_s else "session")
        return not self.hangs


def test_an_engine_that_does_not_answer_is_closed_again_and_metrics_keep_the_one_in_service(served):
    stub, before = Stub(), served.engine()
    served.engines._opener = lambda name, folder: Engine(name, folder, stub, stub)
    with pytest.raises(UserError, match=r"tiny does not answer \(RuntimeError: no device\)"):
        served.engines.load_below("tiny")
    assert stub.closed == ["batcher", "session"]
    assert served.engine() is before
    assert 'retort_batcher_answered{model="tiny"}' in served.ask("GET", "/metrics", headers=HEADERS).text


def test_an_engine_whose_device_hangs_is_left_as_it_is_when_it_goes():
    stub = Stub(hangs=True)
    assert not Engine("tiny", None, stub, stub).close(0.0)  # type: ignore[arg-type]
    assert stub.closed == ["batcher"]  # its session is in use
    assert stub.abandoned  # nor is it closed when the process ends, which would hang there


def test_however_many_ask_whether_it_is_ready_there_is_one_inference():
    stub = Stub(hangs=True)
    engine = Engine("tiny", None, stub, stub)  # type: ignore[arg-type]
    assert engine.proof() is engine.proof()
    engine.proof().set_result(None)
    assert engine.proof().done()
    engine.proven -= 2.0
    assert not engine.proof().done()


def test_an_engine_that_hangs_keeps_nobody_from_hearing_of_the_others(served):
    assert change(served, "silent").status_code == 200
    stub = Stub(hangs=True)
    served.engine("silent").batcher, real = stub, served.engine("silent").batcher
    served.engine("silent").proven = served.engine("tiny").proven = 0.0

    async def both(client: httpx.AsyncClient) -> None:
        asked = asyncio.create_task(client.get("/v2/models/silent/ready", headers=HEADERS))
        await asyncio.sleep(0.05)
        assert (await client.get("/v2/models/tiny/ready", headers=HEADERS)).status_code == 200
        assert not asked.done()
        served.engine("silent")._proof.set_result(None)
        assert (await asked).status_code == 200

    served.run(both)
    served.engine("silent").batcher = real


def test_engines_that_are_closed_load_nothing_more(root, tmp_path):
    config = server_kit.settings(root / "tiny", "--root", root, *server_kit.with_token(tmp_path))
    served = Served(config, root=root)
    served.close()
    with pytest.raises(BusyError, match="stopping"):
        served.engines.load_below("silent")
    assert served.engines.names() == []


@pytest.mark.parametrize(("name", "parameters", "status"), [
    ("nothing", {}, 404), ("tiny", {"folder": "../root"}, 404), ("tiny", {"folder": "/etc"}, 404),
    ("tiny", {"folder": "."}, 404), ("tiny", {"folder": 3}, 400), ("tiny", {"config": "{}"}, 400),
    ("..%2ftiny", {}, 404), (".hidden", {}, 404), ("away", {}, 400), ("no name", {"folder": "tiny"}, 400),
])  # fmt: skip
def test_only_plain_folders_below_the_root_are_opened(served, root, tmp_path, name, parameters, status):
    away = root / "away"
    if name == "away":
        serve_kit.write(tmp_path / "outside")
        away.symlink_to(tmp_path / "outside")
    response = change(served, name, **parameters)
    away.unlink(missing_ok=True)
    assert response.status_code == status
    assert served.engines.names() == ["tiny"]


def test_nobody_changes_engines_without_a_secret(root, tmp_path):
    served = Served(server_kit.settings(root / "tiny"), root=root)
    for path in ("models/silent/load", "models/tiny/unload", "index"):
        assert served.ask("POST", f"/v2/repository/{path}", headers=HEADERS).status_code == 403
    assert served.engines.names() == ["tiny"]
    served.close()
    closed = Served(server_kit.settings(root / "tiny", "--root", root, *server_kit.with_token(tmp_path)), root=root)
    assert closed.ask("POST", "/v2/repository/models/tiny/unload").status_code == 401
    assert closed.engines.names() == ["tiny"]
    closed.close()


def test_two_changes_at_once_are_not_made(root):
    begun, go = threading.Event(), threading.Event()

    def opens(name, folder):
        begun.set()
        assert go.wait(10)
        raise UserError("enough")

    engines = Engines(opens, root)

    def first():
        with pytest.raises(UserError, match="enough"):
            engines.load_below("tiny")

    thread = threading.Thread(target=first)
    thread.start()
    assert begun.wait(10)
    with pytest.raises(BusyError):
        engines.load_below("silent")
    with pytest.raises(BusyError):
        engines.unload("tiny")
    go.set()
    thread.join(10)


def test_an_engine_copied_into_the_root_later_can_be_loaded(served, root):
    shutil.copytree(root / "silent", root / "later")
    assert change(served, "later").status_code == 200
    assert answer(served, model="later") == ""
    shutil.rmtree(root / "later")

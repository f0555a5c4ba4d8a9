"""The server as a Ray application: two replicas on loopback answer, one is killed, and Ray replaces it."""

import http.client
import json
from typing import Any

import pytest
import serve_kit

ray = pytest.importorskip("ray", reason="Ray is not installed; `make test-ray` installs it and runs these")

from configs import options  # noqa: E402
from configs.errors import UsageError  # noqa: E402
from scripts import kill_server  # noqa: E402
from scripts.server_process import started  # noqa: E402
from serve import ray_app  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return serve_kit.write(tmp_path_factory.mktemp("ray") / "tiny")


def config(*argv: object) -> ray_app.RayConfig:
    return options.parse(ray_app.RayConfig, ["--engine", "e", *map(str, argv)], "serve.ray_app")


def test_two_replicas_answer_and_a_killed_one_is_replaced_while_the_other_goes_on(folder, tmp_path):
    with started(*kill_server.COMMANDS["ray"], "--engine", folder) as (_, url):
        host = url.removeprefix("http://")
        statuses = {"/v2/health/ready": 200, "/engine": 200, "/v2/models/tiny": 200, "/v2/models/other": 404, "/": 200}
        for path, status in statuses.items():
            connection = http.client.HTTPConnection(host, timeout=20)
            connection.request("GET", path)
            assert connection.getresponse().status == status
            connection.close()
        connection.request("POST", "/answer", json.dumps({"question": serve_kit.QUESTION, "context": "\t"}))
        response = connection.getresponse()
        assert response.status == 400
        assert "context 0 is empty" in json.loads(response.read())["error"]
        connection.request("POST", "/classify", json.dumps({"text": "it was ada"}))  # as of the server without Ray
        assert "ask it by POST /answer" in json.loads(connection.getresponse().read())["error"]
    told = kill_server.main(options.parse(kill_server.KillConfig, [
        "--engine", str(folder), "--kinds", "ray", "--before-s", "2", "--after-s", "1", "--clients", "4",
        "--out", str(tmp_path / "kill.csv"),
    ], "kill_server"))  # fmt: skip
    row = told["metrics"]["rows"][0]
    assert row["answered"] > 50
    assert (row["wrong"], row["broken_before"]) == (0, 0)
    assert row["first_answer_s"] < 5
    assert row["back_s"] < 30


def test_replicas_follow_the_settings_and_grow_with_the_load():
    fixed = ray_app.deployed(config("--replicas", 2))._bound_deployment
    assert fixed.num_replicas == 2
    assert fixed.max_ongoing_requests == ray_app.ONGOING
    growing = ray_app.application({"engine": "e", "replicas": "2", "max_replicas": "5", "ongoing": "7"})
    scaling: Any = growing._bound_deployment._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (2, 5, 7)


@pytest.mark.parametrize("argv", [
    ["--root", "x", "--token-file", "t"], ["--workers", "2"], ["--replicas", "3", "--max-replicas", "2"],
], ids=" ".join)  # fmt: skip
def test_flags_that_replicas_cannot_keep_are_refused(argv):
    with pytest.raises(UsageError):
        config(*argv)

"""export/algorithms.py on a session of ONNX Runtime and a made-up choice: every size is met, and the folder says it."""

from dataclasses import replace

import numpy as np
import pytest
import serve_kit

from configs.errors import UserError
from export import __main__ as command
from export import algorithms
from export.engine import Plan
from plugins.linear import choices
from plugins.linear.product import Product
from serve import fitting, manifest
from serve.buckets import Buckets
from serve.session import Session

FOUND = {(128, 16, 8, "float16", False, False): np.arange(8, dtype=np.uint64)}
PLAN = Plan(("attention", "linear"), (90,), manifest.Profile(manifest.Range(1, 1, 1), None, None))


@pytest.fixture
def said(monkeypatch):
    """What is said; the plan is model.onnx, and whatever ran has chosen FOUND."""
    opened = Session.open
    monkeypatch.setattr(algorithms.Session, "open", staticmethod(lambda folder, _: opened(folder, "onnxruntime")))
    monkeypatch.setattr(algorithms.matmul, "winners", lambda: ("NVIDIA Made Up", 130000, FOUND))
    return []


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_one_batch_for_every_size_class_of_the_profile(tmp_path, layout):
    about = manifest.read(serve_kit.write(tmp_path / "engine", layout))
    keys = Buckets(about).keys()

    def size_class(key):
        return Product(key[0] * (1 if layout == "packed" else key[1]), 8, 8, "float16", False).size_class[0]

    sizes = algorithms.representatives(keys, layout)
    assert [size_class(key) for key in sizes] == sorted({size_class(key) for key in keys})
    for key in sizes:
        assert Buckets(about).of(algorithms.batch(key, about)).key[0] == key[0]


def test_the_choices_are_written_into_the_folder_and_offered_when_it_is_opened(said, monkeypatch, tmp_path):
    monkeypatch.setattr(choices, "_offered", {})
    folder = serve_kit.write(tmp_path / "engine")
    assert algorithms.search(folder, PLAN, said.append)
    assert said == ["algorithms: 1 of cuBLASLt 130000 for 3 sizes on NVIDIA Made Up"]
    assert fitting.take_choices(manifest.read(folder), "NVIDIA Made Up") == ""  # no file that engine.json lists
    assert not choices._offered
    serve_kit.relist(folder, serve_kit.stated())
    stated = manifest.read(folder)
    assert choices.FILE in stated.files
    monkeypatch.setattr("plugins.linear.matmul.cublaslt", lambda: type("Library", (), {"get_version": lambda: 130000}))
    assert fitting.take_choices(stated, "NVIDIA Made Up") == ""
    kept = choices.Choices("NVIDIA Made Up", 130000).get(next(iter(FOUND)))
    assert kept is not None
    assert kept.tolist() == list(range(8))
    assert "here is cuBLASLt 130000 on NVIDIA Other" in fitting.take_choices(stated, "NVIDIA Other")


def test_a_plan_that_does_not_run_costs_the_file_alone(said, monkeypatch, tmp_path):
    def refuse(*_):
        raise UserError("no GPU")

    monkeypatch.setattr(algorithms.Session, "open", staticmethod(refuse))
    folder = serve_kit.write(tmp_path / "engine")
    assert not algorithms.search(folder, PLAN, said.append)
    assert not algorithms.search(folder, replace(PLAN, plugins=("attention",)), said.append)
    assert said == ["algorithms: none in the folder, for the plan did not run: no GPU"]
    assert not (folder / choices.FILE).exists()


def test_export_times_them_only_where_the_plans_gpu_is(monkeypatch, tmp_path):
    """The whole command, told that the GPU is there; the plan itself cannot be run."""
    import export_kit as kit

    run = kit.run(tmp_path / "run")
    asked = []

    def search(folder, plan, say):
        asked.append(sorted(path.name for path in folder.iterdir()))
        choices.write(folder / choices.FILE, "NVIDIA Made Up", 130000, FOUND)
        return True

    monkeypatch.setattr(command.algorithms, "search", search)
    argv = ("--run", run, "--arch", "89", "--no-verify", "--max-batch", "2")
    kit.export(*argv, "--out", tmp_path / "elsewhere")
    assert not asked
    monkeypatch.setattr(command, "cannot_run", lambda architectures: "")
    kit.export(*argv, "--out", tmp_path / "left", "--no-algorithms")
    assert not asked
    kit.export(*argv, "--out", tmp_path / "here")
    assert "engine.json" in asked[0]
    assert choices.FILE in manifest.read(tmp_path / "here").files

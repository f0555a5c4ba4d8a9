"""scripts/compare.py on a CPU: the same network for all, the table, the CSV, the picture, and what is refused."""

import csv
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import export_kit as kit
import numpy as np
import onnx
import pytest
from bench_engine_kit import Gpu
from test_serve_bench import settings

from configs.errors import UsageError, UserError
from model.config import NAMED
from scripts import bench_engine_timer, compare, compare_entrants, compare_floor
from scripts.bench_engine_plans import Shape
from scripts.bench_engine_timer import Entrant
from scripts.compare_network import Network, unpadded, worst_error
from serve import bench, manifest
from serve.onnx_session import OnnxSession

PEAKS = compare_floor.Peaks(790e12, 1979e12, 4.3e12)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """An engine folder as export writes it, with a plan for a GPU that is not here; its heads are padded."""
    home = tmp_path_factory.mktemp("compare")
    kit.run(home / "run")
    argv = ("--no-verify", "--max-batch", "12", "--arch", "89")
    kit.export("--run", home / "run", "--out", home / "engine", *argv)
    return home / "engine"


def run(engine, out, **changes) -> dict:
    about: dict[str, Any] = {"peers": ("ort",), "batches": (1, 10), "lengths": (16,), "samples": 8}
    return compare.main(compare.CompareConfig(engine=str(engine), out=str(out), **(about | changes)))


def test_one_table_a_csv_and_a_picture_of_the_engine_and_a_peer(engine, tmp_path, capsys):
    out = tmp_path / "results" / "compare.csv"
    found = run(engine, out)
    rows = list(csv.DictReader(out.open(newline="")))
    expected = [(name, batch) for batch in ("1", "10") for name in ("Retort", "ONNX Runtime (CPU)")]
    assert [(row["entrant"], row["batch"]) for row in rows] == expected
    for row in rows:
        assert (row["verdict"], row["precision"], row["samples"]) == ("right", "float32", "8")
        assert float(row["p20_ms"]) <= float(row["p50_ms"]) <= float(row["p99_ms"])
        rate = 1000 * float(row["batch"]) / float(row["p50_ms"])
        assert float(row["sequences_per_s"]) == pytest.approx(rate, rel=2e-2)
        assert 0 < float(row["error"]) < 1e-4 or row["entrant"] == "Retort"
    picture = out.with_suffix(".png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 10_000
    shown = capsys.readouterr().out
    assert "10 x 16" in shown
    assert "floor: " in shown
    assert found["metrics"]["p50_ms"]["10 x 16"]["Retort"] == float(rows[2]["p50_ms"])


def test_what_is_wrong_is_in_the_csv_no_line_of_the_picture_and_an_error(engine, tmp_path, monkeypatch):
    right = compare_entrants.Entrants._onnx

    def wrong(self, shape, ids):
        entrant = right(self, shape, ids)
        entrant.output["end_logits"][-1, 3] += 9
        return entrant

    monkeypatch.setattr(compare_entrants.Entrants, "_onnx", wrong)
    drawn = []
    monkeypatch.setattr(compare, "draw", lambda rows, path: drawn.extend(compare_lines(rows)) or path)
    with pytest.raises(UserError, match=r"wrong or failed: ONNX Runtime \(CPU\) 1x16"):
        run(engine, tmp_path / "c.csv", batches=(1,))
    assert drawn == ["Retort, float32"]


def compare_lines(rows) -> list[str]:
    from scripts.compare_plot import lines

    return list(lines([row for row in rows if row["verdict"] == "right"]))


@pytest.mark.parametrize("lengths", [(384,), (128, 384)])
def test_nothing_of_the_picture_is_cut_off(lengths, tmp_path):
    from matplotlib import image

    from scripts.compare_plot import draw

    entrants = "Retort", "TensorRT, no plugins", "PyTorch SDPA, eager", "torch.compile (default)", "ONNX Runtime (CPU)"
    about = {"precision": "float16", "best": "*", "verdict": "right", "p50_ms": "2", "floor_ms": "1", "engine": "base"}
    about |= {"device": "a GPU", "date": "today", "peaks": "fast"}
    rows = [about | {"entrant": name, "length": length, "batch": "1"} for name in entrants for length in lengths]
    pixels = image.imread(draw(rows, tmp_path / "c.png"))[..., :3]
    for margin in (pixels[:4], pixels[-4:], pixels[:, :4], pixels[:, -4:]):
        assert (margin == 1).all()


def test_a_gpu_that_fails_while_it_is_timed_costs_that_shape(engine, tmp_path, monkeypatch):
    real = compare.take_turns

    def fails_at_first(ready, samples):
        monkeypatch.setattr(compare, "take_turns", real)
        raise RuntimeError("an illegal address")

    monkeypatch.setattr(compare, "take_turns", fails_at_first)
    with pytest.raises(UserError, match=r"wrong or failed: Retort 1x16; ONNX Runtime \(CPU\) 1x16; the table"):
        run(engine, tmp_path / "c.csv")
    rows = list(csv.DictReader((tmp_path / "c.csv").open(newline="")))
    assert [row["verdict"] for row in rows] == 2 * ["failed while it was timed: an illegal address"] + 2 * ["right"]


def test_serve_bench_hands_over_and_passes_the_refusal_on(engine, monkeypatch):
    with pytest.raises(UserError, match="trt needs a GPU that runs this engine's plan"):
        bench.main(settings("--engine", engine, "--compare", "trt,ort"))
    with pytest.raises(UsageError, match="no peer 'tvm'; there are torch, ort, trt"):
        settings("--engine", engine, "--compare", "torch,tvm")
    with pytest.raises(UsageError, match="leave --profile and --data out"):
        settings("--engine", engine, "--compare", "ort", "--profile")
    asked = []

    class Child:
        stdout, returncode = iter(["a table\n", json.dumps({"out": "c.csv", "metrics": {"a": 1}}) + "\n"]), 0
        __enter__, __exit__ = (lambda self: self), (lambda self, *_: None)

    monkeypatch.setattr(bench.subprocess, "Popen", lambda argv, **_: asked.extend(argv) or Child())
    flags = ("--batches", 2, 4, "--samples", 300, "--out", "c.csv", "--compile-modes", "default")
    found = bench.main(settings("--engine", engine, "--compare", "torch, ort", *flags))
    assert found == {"out": "c.csv", "metrics": {"a": 1}}
    from configs import options

    child = options.parse(compare.CompareConfig, asked[3:], "compare")
    assert (child.engine, child.peers, child.batches, child.samples) == (str(engine), ("torch", "ort"), (2, 4), 300)
    assert child.out == str(Path("c.csv").absolute())
    assert (child.compile_modes, child.lengths) == (("default",), (32, 128, 384))


def test_on_a_gpu_all_get_the_same_ids_and_the_best_mode_of_torch_is_named(engine, tmp_path, monkeypatch, capsys):
    """Plans are ONNX files, computed by ONNX Runtime; torch is a stand-in that computes what model.onnx does."""
    gpu = Gpu()
    monkeypatch.setattr(bench_engine_timer, "driver", lambda: gpu)
    monkeypatch.setattr(compare, "Device", lambda: gpu)
    monkeypatch.setattr(compare_floor, "of_gpu", lambda *_: PEAKS)
    fitted = SimpleNamespace(trt=SimpleNamespace(__version__="9.9"), gpu=SimpleNamespace(name="x", architecture=89))
    monkeypatch.setattr(compare.fitting, "fit", lambda manifest: SimpleNamespace(**vars(fitted), kernels="kernels"))
    monkeypatch.setattr(compare_entrants.engine, "build", lambda trt, source, out, *_: shutil.copyfile(source, out))
    opened = []

    class Fake:
        def __init__(self, trt, plan, names, kernels):
            self.ours = bool(names)
            self.model = (engine / "model.float16.onnx").read_bytes() if self.ours else plan
            opened.append((len(names), kernels, [item.name for item in onnx.load_from_string(self.model).graph.input]))

        def entrant_of(self, device, given, outputs):
            arrays = kit.compute(onnx.load_from_string(self.model), given)
            for (shape, dtype), array in zip(outputs.values(), arrays, strict=True):
                assert (array.shape, array.dtype) == (shape, dtype)
            cost = 1.0 if self.ours else 2.0
            return Entrant(lambda: gpu.spend(cost), 7, dict(zip(outputs, arrays, strict=True)))

    monkeypatch.setattr(compare_entrants, "Opened", Fake)

    def pytorch(self, mode, shape, ids):
        cost = {"torch, not compiled": 5.0, "torch.compile": 4.0, "torch.compile, max-autotune": 3.0}[mode]
        return Entrant(lambda: gpu.spend(cost), 7, self.reference(ids))

    monkeypatch.setattr(compare_entrants.Entrants, "_pytorch", pytorch)
    monkeypatch.setattr(compare_entrants.Entrants, "refuse", lambda *_: None)
    found = run(engine, tmp_path / "c.csv", peers=("torch", "trt"), batches=(10,), lengths=(12, 16))
    assert found["metrics"]["p50_ms"]["10 x 16"] == {
        "Retort": 1.0, "TensorRT, no plugins": 2.0, "PyTorch SDPA, eager": 5.0, "torch.compile (default)": 4.0,
        "torch.compile (max-autotune)": 3.0,
    }  # fmt: skip
    rows = list(csv.DictReader((tmp_path / "c.csv").open(newline="")))
    assert [row["entrant"] for row in rows if row["best"]] == 2 * ["torch.compile (max-autotune)"]
    assert {row["precision"] for row in rows} == {"float16"}
    assert all(1e-5 < float(row["error"]) < 0.1 for row in rows if "Ret" in row["entrant"] or "Ten" in row["entrant"])
    assert opened[0][:2] == (len(manifest.read(engine).plugins), "kernels")
    assert opened[1:] == 2 * [(0, None, ["token_ids", "segment_ids"])]  # nothing is masked
    assert "torch.compile (max-autotune) *" in capsys.readouterr().out


def test_a_network_is_read_back_as_it_was_exported(engine):
    network = Network.of(manifest.read(engine))
    given = kit.tensors(kit.SIZES)
    for name, array in given.items():
        np.testing.assert_array_equal(network.tensors[name], array, err_msg=name)
    assert network.tensors.keys() > given.keys()
    assert unpadded(given, NAMED["bert-tiny"]) == given  # heads of 64 have no zeros to lose


def test_one_number_of_many_that_is_off_is_seen():
    wanted = {"a": np.random.default_rng(0).standard_normal((9, 400)), "b": np.ones((9, 1))}
    for name, value in (("a", 5.0), ("b", math.nan)):
        ours = {key: array.copy() for key, array in wanted.items()}
        assert worst_error(ours, wanted) == 0
        ours[name][7, 0] = value
        assert worst_error(ours, wanted) > 3


@pytest.mark.parametrize(("size", "shape", "precision", "floor"), [
    ("bert-base", Shape(32, 128), "float16", 0.905), ("bert-base", Shape(32, 384), "float16", 2.862),
    ("bert-large", Shape(1, 128), "float16", 0.141), ("bert-large", Shape(8, 128), "float8", 0.329),
])  # fmt: skip
def test_floors_are_those_worked_out_by_hand(size, shape, precision, floor):
    """Rates of an H200: 790 and 1,979 TFLOP/s, 4.3 TB/s."""
    assert PEAKS.floor_ms(NAMED[size], shape, precision) == pytest.approx(floor, rel=0.01)


def test_the_engine_on_a_cpu_is_the_session_that_serves(engine):
    network = Network.of(manifest.read(engine))
    entrants = compare_entrants.Entrants(network, None, None, 1)
    ids = entrants.ids(Shape(10, 12), 1)
    assert (ids[8:] == ids[:2]).all()
    assert len(np.unique(ids[:8], axis=0)) == 8
    direct = OnnxSession(network.manifest).run(compare_entrants._packed(ids))
    for array, wanted in zip(entrants.reference(ids).values(), direct, strict=True):
        np.testing.assert_allclose(array.reshape(-1), wanted, atol=1e-5)

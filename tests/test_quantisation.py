"""8-bit products in export: ranges and scales, the simulation, the choice of products, the graph, the whole command."""

import json
import shutil
from dataclasses import replace
from typing import Any

import export_kit as kit
import numpy as np
import pytest
import tiny

from configs.errors import UsageError, UserError
from export import __main__ as command
from export import calibration, checkpoint, files, graph, precision, ranges, runners
from export.comparison import Comparison, Figure, Tolerance
from export.config import ExportConfig
from export.quantisation import FORMATS, Quantisation, names, quantise_weight
from export.ranges import METHODS, Range
from export.simulation import Simulation
from export.verify import GateError
from model.config import BertConfig
from plugins import PLUGINS, formats, legs, plugin
from serve import gpu
from serve import manifest as manifests

SIZES = BertConfig(vocabulary=400, hidden=64, layers=2, heads=2, ffn=96, positions=64)  # all multiples of 16
TRAIN = "train.json"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantisation")
    kit.run(folder / "run", SIZES, made={"settings": {"data": str(folder / TRAIN)}})
    tiny.questions(folder / TRAIN, 60)
    tiny.questions(folder / "dev.json", 24)
    weights = graph.build(kit.tensors(SIZES), SIZES, precision="float32", layout="packed")
    files.save(weights, folder / "model.onnx")
    return folder


@pytest.fixture(scope="module")
def asked(home):
    return calibration.read(checkpoint.read(home / "run"), str(home / TRAIN), 40)


def test_a_range_widens_without_losing_what_it_has_seen():
    rng, found = np.random.default_rng(0), Range()
    parts = [rng.standard_normal(1000) * scale for scale in (0.01, 1, 37.0)]
    for part in (*parts, np.zeros(5)):
        found.add(part)
    every = np.abs(np.concatenate([*parts, np.zeros(5)]))
    assert found.counts.sum() == len(every)
    assert found.cut("absmax", "float8") == every.max()
    for method in ("99.9", "99.99"):
        assert found.cut(method, "int8") == pytest.approx(np.quantile(every, float(method) / 100), rel=0.05)
    with pytest.raises(ValueError, match="not finite"):
        found.add(np.array([1.0, np.inf]))


def test_the_mse_cut_loses_least():
    found = Range()
    x = np.random.default_rng(0).standard_normal(100_000)
    x[0] = 12.0  # an outlier, which int8 should not pay for
    found.add(x)

    def lost(cut):
        stored = formats.quantise(x, formats.MOST["int8"] / cut, "int8")
        return ((stored * (cut / formats.MOST["int8"]) - x) ** 2).mean()

    assert found.cut("mse", "int8") < 9
    assert lost(found.cut("mse", "int8")) == min(lost(found.cut(method, "int8")) for method in METHODS)


@pytest.mark.parametrize("format", FORMATS)
def test_a_weight_comes_back_within_half_a_step(format):
    kernel = np.random.default_rng(0).standard_normal((32, 16)).astype(np.float32) * np.exp2(np.arange(16))
    kernel[:, 3] = 0
    errors = []
    for channels in (False, True):
        stored, scale = quantise_weight(kernel, format, channels)
        assert stored.shape == (16, 32)
        assert scale.shape == ((16,) if channels else (1,))
        back = stored.astype(np.float32) * scale[:, None]
        errors.append(np.abs(back.T - kernel).max(axis=0) / np.maximum(np.abs(kernel).max(axis=0), 1))
    assert errors[1].max() < (0.04 if format == "float8" else 0.005)
    assert format == "float8" or errors[0].max() > 10 * errors[1].max()  # one scale for all, and int8 is lost


def all_of(format, channels=False, scale=0.0):
    return Quantisation(format, dict.fromkeys(names(SIZES), scale or 8 / formats.MOST[format]), channels)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("gelu", ["erf", "tanh"])
def test_the_simulation_is_the_8_bit_graph(home, asked, format, channels, gelu, tmp_path):
    config, some = replace(SIZES, gelu=gelu), all_of(format, channels)
    files.save(graph.build(kit.tensors(SIZES), config, precision="float32", layout="packed"), tmp_path / "model.onnx")
    eight = graph.build(kit.tensors(SIZES), config, precision="float32", layout="packed", quantisation=some)
    files.save(eight, tmp_path / "eight.onnx")
    one = frozenset(name for name in names(SIZES) if format == "float8" and gelu == "tanh" and name.endswith("ffn.in"))
    simulation = Simulation(tmp_path / "model.onnx", "packed", format, channels, one)
    rows = np.arange(len(asked.features))
    plain = runners.OnnxFile(tmp_path / "model.onnx", "packed").logits(asked.features, "plain")
    exact = runners.OnnxFile(tmp_path / "eight.onnx", "packed").logits(asked.features, "eight")
    assert calibration.relative_error(simulation.logits(asked.features, rows, {}), plain) < 1e-5
    off = calibration.relative_error(exact, plain)
    assert 0.005 < off < 0.5
    # A rounding that falls otherwise is a whole step; few do.
    assert calibration.relative_error(simulation.logits(asked.features, rows, some.scales), exact) < off / 2


def test_a_simulation_too_large_for_one_file_says_the_same(home, asked, tmp_path, monkeypatch):
    """BERT-large's has two sets of weights, more than the 2 GiB that a protocol buffer holds."""
    shutil.copy(home / "model.onnx", tmp_path / "model.onnx")
    rows, scales = np.arange(3), all_of("float8").scales
    found = []
    for limit in (1 << 30, 1):
        monkeypatch.setattr(ranges, "EXTERNAL_FROM", limit)
        simulation = Simulation(tmp_path / "model.onnx", "packed", "float8", False)
        found.append(simulation.logits(asked.features, rows, scales))
        assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    for one, other in zip(*found, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_products_that_hurt_most_for_their_arithmetic_stay_until_the_error_is_small_enough(home, asked):
    said: list[str] = []

    def choose(error, times: Any = "no GPU"):
        found = calibration.calibrate(
            home / "model.onnx", asked.checkpoint, asked, format="float8", channels=False, layout="packed", gelu="erf",
            padded_head=32, error=error, times=times, say=said.append,
        )  # fmt: skip
        return found.quantisation, found.report

    whole, report = choose(1.0)
    assert set(whole.scales) == set(names(SIZES))
    assert not any("error_alone" in item for item in report["products"].values())  # no limit: there is nothing to ask
    assert report["errors"][report["method"]] == min(report["errors"].values())
    assert report["error"] == pytest.approx(report["errors"][report["method"]], rel=1e-3)
    some, less = choose(report["error"] / 2)
    assert 0 < len(some.scales) < len(whole.scales)
    assert less["error"] <= report["error"] / 2
    table = less["products"]
    assert {name for name, item in table.items() if item["precision"] == "float8"} == set(some.scales)
    assert all(item["why"] for item in table.values())
    assert sum(item["arithmetic"] for item in table.values()) == pytest.approx(1)
    assert "alone it makes an error of" in next(i["why"] for i in table.values() if i["precision"] == "float16")
    none, _ = choose(1e-9)
    assert not none.scales
    assert "nothing of this engine is float8" in said[-1]
    slow = {"attention.qkv": (10.0, 12.0), "attention.out": (5.0, 4.0), "ffn.in": (9.0, 5.0), "ffn.out": (9.0, 5.0)}
    faster, told = choose(1.0, slow)
    assert "layers.1.attention.qkv" not in faster
    assert told["products"]["layers.1.attention.qkv"]["why"] == "not faster: 12.0 us in place of 10.0"
    assert told["products"]["layers.0.ffn.in"]["why"] == "5.0 us in place of 9.0"
    assert any("of their arithmetic" in line for line in said)


def test_calibration_takes_training_questions_and_says_which(home, tmp_path):
    run = checkpoint.read(home / "run")
    assert calibration.source(None, run) == (str(home / TRAIN), "what the run was trained with")
    assert calibration.source("x.json", run) == ("x.json", "asked for")
    kit.run(tmp_path / "other", SIZES, made={"settings": {"data": "/nowhere/train.json"}})
    data, why = calibration.source(None, checkpoint.read(tmp_path / "other"))
    assert (data, "/nowhere/train.json, which is not to be had" in why) == ("builtin:train", True)
    tiny.questions(tmp_path / "few.json", 3)
    with pytest.raises(UserError, match=r"few\.json gives \d windows to calibrate with; needed are 16"):
        calibration.read(run, str(tmp_path / "few.json"), 128)


def test_the_lower_end_of_the_interval_can_be_asked_for():
    found = Comparison(0.1, 0.01, 0, {"exact": Figure(50, 50, (0, 0)), "f1": Figure(79.9, 80.0, (-0.4, 0.2))}, "f1")
    assert found.complaints(Tolerance(1, 2, 0.1)) == []
    (said,) = found.complaints(Tolerance(1, 2, 0.1, 0.3))
    assert said.startswith("F1 may fall by 0.40 (lower end of the 95 % interval of the difference; tolerance 0.3)")
    assert found.complaints(Tolerance(1, 2, 0.1, 0.5)) == []


def config(**more) -> ExportConfig:
    return ExportConfig(run="r", out="o", **more)


@pytest.mark.parametrize(("arch", "first"), [
    ("90", "float8"), ("89,120", "float8"), ("80", "int8"), ("86,90", "int8"), ("75", "float16"),
])  # fmt: skip
def test_auto_tries_the_format_that_all_gpus_multiply(arch, first, monkeypatch):
    found = precision.candidates(config(precision="auto", arch=arch))
    assert [name for name, _ in found] == ([first, "float16"] if first != "float16" else ["float16"])
    assert all(why for _, why in found)


def test_what_is_timed_is_what_the_graph_has():
    def ops(product, format="float8", gelu="erf", names=tuple(PLUGINS)):
        found = precision.compared(product, (128, 768, 768), format, False, gelu, names)
        for op, case in found:  # and the operator takes the case
            assert set(case.attributes) == set(plugin(op).attributes)
            assert legs.shapes(op, case, legs.inputs(op, case, "float16"))["y"] == (128, 768)
        return [op for op, _ in found]

    assert ops("attention.qkv") == ["linear", "linear8"]
    assert ops("ffn.out") == ["linear_skip_layer_norm", "linear8_skip_layer_norm"]
    assert ops("ffn.out", "int8") == ops("ffn.out", names=("linear8",)) == ["linear", "linear8"]
    assert ops("ffn.in", gelu="tanh") == ["linear_gelu", "linear8_gelu8"]


def test_auto_guesses_no_gpu_and_needs_our_plugins(monkeypatch):
    assert precision.candidates(config(precision="auto"))[0][1].startswith("no --arch says which GPU")
    monkeypatch.setattr(gpu, "find", lambda: gpu.Gpu("H200", 90))
    assert [name for name, _ in precision.candidates(config(precision="auto"))] == ["float8", "float16"]
    some = ",".join(name for name in PLUGINS if name != "linear8")
    assert "linear8 is left out" in precision.candidates(config(precision="auto", plugins=some))[0][1]
    assert precision.candidates(config(precision="auto", target="none"))[0][0] == "float16"
    assert precision.candidates(config(precision="int8")) == [("int8", "asked for")]


def test_an_8_bit_precision_is_tried_with_ever_fewer_products_unless_the_error_was_said():
    found = precision.attempts(config(precision="auto", arch="89"))
    assert [(one.precision, one.quantisation_error) for one, _ in found] == [
        ("float8", 0.025), ("float8", 0.0125), ("float8", 0.00625), ("float16", 0.025),
    ]  # fmt: skip
    assert found[1][1] == "sm_89 multiplies it at twice the rate of float16, 1.25 % of error allowed"
    assert len(precision.attempts(config(precision="float8", arch="89"))) == 3
    said = precision.attempts(config(precision="float8", arch="89", quantisation_error=0.1))
    assert [one.quantisation_error for one, _ in said] == [0.1]
    assert len(precision.attempts(config(precision="float16"))) == 1


@pytest.mark.parametrize(("settings", "words"), [
    ({"precision": "float8", "arch": "86,90"}, "float8 is for GPUs from 89 on; --arch says 86"),
    ({"precision": "int8", "arch": "75"}, "int8 is for GPUs from 80 on; --arch says 75"),
    ({"precision": "float8", "plugins": "attention"}, "float8 needs the plugins"),
])  # fmt: skip
def test_what_8_bits_need_is_said(settings, words):
    with pytest.raises(UsageError) as raised:
        config(**settings)
    assert words in str(raised.value)


def test_scales_for_each_output_of_float8_are_for_9_0_alone():
    assert config(precision="float8", weight_scales="channel").channels((90,))
    with pytest.raises(UsageError, match=r"on 9\.0 alone; take --weight-scales tensor"):
        config(precision="float8", weight_scales="channel").channels((89, 90))
    assert [config(precision=name).channels((89,)) for name in FORMATS] == [False, True]


def test_fewer_products_are_8_bits_wide_where_the_gate_says_no(monkeypatch, tmp_path):
    unread: Any = None
    tried = []

    def export_in(settings, checkpoint, out, kept):
        tried.append(settings.quantisation_error)
        if len(tried) < 3:
            raise GateError("5 % of the answers change", {})
        return {}

    monkeypatch.setattr(command, "export_in", export_in)
    command.export_engine(config(precision="float8", arch="89"), unread, tmp_path)
    assert tried == [0.025, 0.0125, 0.00625]
    tried.clear()
    with pytest.raises(GateError, match="5 %"):
        command.export_engine(config(precision="float8", arch="89", quantisation_error=0.02), unread, tmp_path)
    assert tried == [0.02]


def test_the_command_calibrates_gates_and_writes_the_decision(home, tmp_path, capsys):
    more = ("--dev", home / "dev.json", "--arch", "89", "--max-batch", "4")
    loose = ("--quantisation-error", "0.9", "--tolerance-answers", "100", "--tolerance-f1", "60")
    out = tmp_path / "engine"
    result = kit.export("--run", home / "run", "--out", out, "--precision", "float8", *more, *loose)
    about = json.loads((out / "engine.json").read_text())
    assert manifests.read(out).precision == "float8"
    assert about["quantisation"]["calibrated_on"] == str(home / TRAIN)
    assert about["quantisation"]["measured_here"].startswith("no GPU here")
    assert {item["precision"] for item in about["quantisation"]["products"].values()} == {"float8"}
    layers = about["plugin_layers"]
    assert layers["linear8"] == layers["linear8_gelu8"] == 2
    assert layers["linear8_skip_layer_norm"] + layers["linear8_skip_layer_norm8"] == 4
    assert set(about["plugins"]) == {"embed_layer_norm", "attention", "linear8", "linear_skip_layer_norm"}
    assert 0 < about["verified"]["float8_on_cpu"]["largest_logit_difference"] < 4
    assert about["verified"]["float16_on_cpu"]["windows"] > 0
    assert result["metrics"]["products"] == {"float8": 8}
    assert sorted(path.name for path in out.iterdir()) == [
        "engine.json", "kernels", "model.float8.onnx", "model.onnx", "model.plan", "vocab.txt",
    ]  # fmt: skip
    strict = ("--quantisation-error", "0.9", "--tolerance", "1e-3")
    with pytest.raises(UserError, match=r"float8 products do not answer .* a logit differs .*; (the first|no) layer"):
        kit.export("--run", home / "run", "--out", tmp_path / "no", "--precision", "float8", *more, *strict)
    capsys.readouterr()
    strict = ("--quantisation-error", "0.9", "--tolerance", "0.01")
    kit.export("--run", home / "run", "--out", tmp_path / "auto", "--precision", "auto", *more, *strict)
    assert manifests.read(tmp_path / "auto").precision == "float16"
    printed = capsys.readouterr().out
    assert "precision: float8 (sm_89 multiplies it at twice the rate of float16, 90 % of error allowed)" in printed
    assert "precision: not float8 so: float8 products do not answer what the checkpoint answers" in printed

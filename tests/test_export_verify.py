"""The gate: what it measures, what it lets pass, and that it names the first layer that differs."""

import json
import re
import sys
from dataclasses import replace

import export_kit as kit
import numpy as np
import pytest
import tiny

from configs.errors import UserError
from export import checkpoint, files, first_difference, graph, plan_runner, runners, verify
from export.comparison import Comparison, Figure, Questions, Tolerance, bootstrap, compare, table, worst
from export.first_difference import find
from serve import gpu
from serve import manifest as manifests
from serve.session import Session

SIZES = kit.SIZES


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A run, and dev questions; the vocabulary has letters, so every answer can be said."""
    folder = tmp_path_factory.mktemp("gate")
    kit.run(folder / "run")
    tiny.questions(folder / "dev.json", 24)
    return folder


@pytest.fixture(scope="module")
def questions(home):
    return Questions.read(checkpoint.read(home / "run"), str(home / "dev.json"), None)


@pytest.fixture(scope="module")
def reference(questions):
    return runners.Keras(questions.checkpoint).logits(questions.features)


def export(home, out, *more):
    return kit.export("--run", home / "run", "--out", out, "--dev", home / "dev.json", *more)


def spoil(monkeypatch, name: str, precision: str, by: float = 0.3) -> None:
    """From now on one weight of the graphs in this precision is another one."""
    build = graph.build

    def spoilt(tensors, config, **settings):
        if settings["precision"] == precision:
            tensors = tensors | {name: tensors[name] + np.float32(by) * np.sign(tensors[name])}
        return build(tensors, config, **settings)

    monkeypatch.setattr(graph, "build", spoilt)


def test_keras_gives_every_window_its_logits(questions, reference):
    features = questions.features
    assert [len(row) for row in reference[0]] == features.length.tolist()
    row = int(np.argmin(features.length))
    alone = kit.compute(
        graph.build(kit.tensors(SIZES), SIZES, precision="float32", layout="packed"),
        runners.inputs_of(runners.Packed.windows(features, np.array([row])), "packed")[0],
    )
    np.testing.assert_allclose(reference[0][row], alone[0], atol=1e-4, rtol=0)
    np.testing.assert_allclose(reference[1][row], alone[1], atol=1e-4, rtol=0)


def test_equal_logits_differ_in_nothing(questions, reference):
    same = compare(questions, reference, reference)
    assert (same.largest_logit_difference, same.mean_logit_difference, same.answers_changed) == (0, 0, 0)
    f1, exact = same.figures["f1"], same.figures["exact"]
    assert (f1.engine - f1.checkpoint, f1.interval, exact.interval) == (0, (0, 0), (0, 0))
    assert same.complaints(Tolerance(1e-9, 0, 0)) == []


def test_another_answer_is_seen_in_every_figure(questions, reference):
    start, end = ([row.copy() for row in rows] for rows in reference)
    start[3][:] = 0
    start[3][questions.features.query_length(3) + 2] = 50.0  # now the answer begins with the context
    changed = compare(questions, (start, end), reference)
    difference = np.abs(start[3] - reference[0][3])
    tokens = sum(len(row) for rows in reference for row in rows)
    assert changed.largest_logit_difference == pytest.approx(difference.max())
    assert changed.mean_logit_difference == pytest.approx(difference.sum() / tokens)
    assert changed.answers_changed == pytest.approx(100 / len(questions.dataset.examples))
    assert worst((start, end), reference, 1).tolist() == [3]
    answers = questions.answers((start, end))
    name = questions.dataset.examples[questions.features.example[3]].id
    assert answers[name] != questions.answers(reference)[name]


def test_an_answer_that_the_checkpoint_decides_by_rounding_is_no_change(questions, reference):
    features = questions.features
    name, rows = questions.dataset.examples[1].id, np.flatnonzero(features.example == 1)
    first = features.query_length(rows[0]) + 2  # token of the context

    def leading(lead: float):
        """Logits with which the first word leads the third by four times this."""
        sides = tuple([row.copy() for row in rows] for rows in reference)
        for side in sides:
            for row in rows:
                side[row][:] = -9
            side[rows[0]][[first, first + 2]] = 5 + lead, 5 - lead
        return sides

    broken = compare(questions, leading(-5e-5), leading(5e-5))
    assert questions.answers(leading(-5e-5))[name] != questions.answers(leading(5e-5))[name] != ""
    assert (broken.answers_changed, broken.ties) == (0, 1)
    assert "besides 1 that the checkpoint leaves to rounding" in table(broken, 24, len(features))
    changed = compare(questions, leading(-5e-5), leading(1e-3))
    assert (changed.answers_changed, changed.ties) == (pytest.approx(100 / len(questions.dataset.examples)), 0)


def test_with_version_2_the_runs_threshold_decides_what_has_no_answer(tmp_path):
    run = kit.run(tmp_path / "run", version="2.0", no_answer_threshold=0.0)
    tiny.questions(tmp_path / "dev.json", 40, version="2.0")
    asked = Questions.read(checkpoint.read(run), str(tmp_path / "dev.json"), 30)
    assert len(asked.dataset.examples) == 30
    zeros = [np.zeros(length, np.float32) for length in asked.features.length]
    never, always = [row.copy() for row in zeros], [row.copy() for row in zeros]
    for one, other in zip(never, always, strict=True):
        one[0], other[-2] = 1.0, 1.0  # [CLS], which is no answer, and the last token of the context
    assert set(asked.answers((never, zeros)).values()) == {""}
    assert "" not in asked.answers((always, always)).values()
    without = np.array([not example.answers for example in asked.dataset.examples])
    assert 0 < without.sum() < 30
    np.testing.assert_array_equal(asked.scores(asked.predictions((never, zeros)))[:, 0], 100 * without)


def test_without_tensorflow_the_gate_says_how_to_go_on(questions, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(UserError, match=r"in Keras on TensorFlow, and .*tensorflow.*; install both, or leave it out"):
        runners.Keras(questions.checkpoint)


@pytest.mark.parametrize(("changes", "complaint"), [
    ({"largest_logit_difference": 0.2}, "a logit differs by 0.2 (tolerance 0.1)"),
    ({"largest_logit_difference": float("nan")}, "a logit differs by nan (tolerance 0.1)"),
    ({"answers_changed": 2.0}, "2.00 % of the answers change (tolerance 1 %)"),
    ({"f1": Figure(77.0, 80, (-5.0, -1.0))}, "F1 falls from 80.00 to 77.00, by more than chance (95 % interval of "
     "the difference -5.00 to -1.00, tolerance 0.5)"),
    ({"f1": Figure(77.0, 80, (-7.0, 0.0))}, None),  # may be chance
    ({"f1": Figure(79.6, 80, (-0.5, -0.3))}, None),  # certain, and within the tolerance
    ({"f1": Figure(90.0, 80, (9.0, 11.0))}, None),
    ({}, None),
])  # fmt: skip
def test_a_comparison_complains_of_what_is_beyond_the_tolerance_alone(changes, complaint):
    fine = Comparison(0.1, 0.01, 1.0, {"exact": Figure(70, 70, (0, 0)), "f1": Figure(80, 80, (0, 0))}, "f1")
    figures = fine.figures | {name: value for name, value in changes.items() if name in fine.figures}
    rest = {name: value for name, value in changes.items() if name not in fine.figures}
    found = replace(fine, figures=figures, **rest).complaints(Tolerance(0.1, 1.0, 0.5))
    assert found == ([complaint] if complaint else [])


def test_the_bootstrap_interval_is_that_of_the_mean_and_the_same_each_time():
    random = np.random.default_rng(3)
    differences = random.normal(-2, 10, (400, 2))
    low, high = bootstrap(differences)
    error = differences.std(axis=0) / 20  # of a mean of 400
    np.testing.assert_allclose(low, differences.mean(axis=0) - 1.96 * error, atol=0.1)
    np.testing.assert_allclose(high, differences.mean(axis=0) + 1.96 * error, atol=0.1)
    np.testing.assert_array_equal(bootstrap(differences), (low, high))
    np.testing.assert_array_equal(bootstrap(np.full((7, 1), -1.5)), [[-1.5], [-1.5]])


@pytest.mark.parametrize(("weight", "node"), [
    ("embeddings.position", "embeddings"),
    ("layers.0.attention.qkv.bias", "layer_0/attention/qkv"),
    ("layers.1.attention.out.bias", "layer_1/attention/norm"),
    ("layers.1.ffn.in.kernel", "layer_1/ffn/in"),
    ("layers.1.ffn.norm.offset", "layer_1/ffn/norm"),
    ("span.kernel", "head/start_logits"),
])  # fmt: skip
@pytest.mark.parametrize("layout", graph.LAYOUTS)
def test_the_first_node_that_differs_is_named(tmp_path, layout, weight, node):
    whole = kit.tensors(SIZES)
    spoilt = whole | {weight: whole[weight] + np.float32(0.3) * np.sign(whole[weight])}
    for name, tensors in (("whole", whole), ("spoilt", spoilt)):
        files.save(graph.build(tensors, SIZES, precision="float32", layout=layout), tmp_path / f"{name}.onnx")
    ours, theirs = (
        runners.onnx_runner(tmp_path / f"{name}.onnx", kit.batch(), layout) for name in ("spoilt", "whole")
    )
    told = find(tmp_path / "spoilt.onnx", ours, theirs, first_difference.ROUNDING["float32"])
    assert re.match(rf"the first layer that differs is {node.split('/')[0]}: {node} by \S+ %( \(\S+ before|$)", told)
    same = find(tmp_path / "whole.onnx", theirs, theirs, first_difference.ROUNDING["float32"])
    assert same == "no layer differs by more than 0.1 %; the last, head/end_logits, by 0 %"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["spoilt.onnx", "whole.onnx"]


def test_marked_outputs_are_those_of_the_real_tokens_in_both_layouts(tmp_path):
    found = []
    for layout in graph.LAYOUTS:
        model = tmp_path / f"{layout}.onnx"
        files.save(graph.build(kit.tensors(SIZES), SIZES, precision="float32", layout=layout), model)
        found.append(runners.onnx_runner(model, kit.batch(), layout)(["layer_0/ffn/norm"])["layer_0/ffn/norm"])
    assert found[0].shape == (kit.batch().tokens, SIZES.hidden)
    np.testing.assert_allclose(*found, atol=1e-4, rtol=0)


def test_a_value_that_is_not_finite_differs():
    one, broken = np.ones((2, 2), np.float32), np.array([[1, np.nan], [1, 1]], np.float32)
    assert first_difference.relative({"a": broken}, {"a": one}, ["a"]) == {"a": float("inf")}
    assert first_difference.relative({"a": one * 3}, {"a": one}, ["a"]) == {"a": 2.0}


def test_an_engine_that_is_not_the_checkpoint_is_kept_out_of_the_way(home, tmp_path, monkeypatch):
    spoil(monkeypatch, "layers.1.ffn.in.kernel", "float32")
    with pytest.raises(verify.GateError) as caught:
        export(home, tmp_path / "engine", "--target", "none")
    told = str(caught.value)
    assert "onnxruntime does not answer what the checkpoint answers: a logit differs by " in told
    assert "the first layer that differs is layer_1: layer_1/ffn/norm by " in told
    assert told.endswith(f"; the engine lies in {tmp_path}/engine.failed to be looked at")
    assert [path.name for path in tmp_path.iterdir()] == ["engine.failed"]
    report = json.loads((tmp_path / "engine.failed" / "engine.json").read_text())["verified"]
    assert report["failed"][0].startswith("a logit differs by ")
    assert report["first_difference"].startswith("the first layer that differs is layer_1")


@pytest.mark.parametrize("layout", graph.LAYOUTS)
def test_a_float16_graph_that_differs_fails_without_a_gpu(home, tmp_path, monkeypatch, layout):
    spoil(monkeypatch, "layers.0.attention.out.kernel", "float16")
    message = r"model\.float16\.onnx does not .*the first layer that differs is layer_0: layer_0/attention/out by "
    with pytest.raises(verify.GateError, match=message):
        export(home, tmp_path / "engine", "--layout", layout, "--plugins", "none", "--arch", "89")
    assert (tmp_path / "engine.failed" / "model.plan").is_file()


def pretend_gpu(monkeypatch, wrong: float = 0.0) -> None:
    """A GPU on which the plan computes what the float16 graph computes on the CPU, plus `wrong`."""

    class PlanSession(Session):
        runtime, why, device = "tensorrt", "TensorRT as pretended", "a GPU"

        def _compute(self, batch):
            file = runners.OnnxFile(self.manifest.folder / "model.float16.onnx", self.manifest.layout)
            start, end = file.run(batch)
            return start + wrong, end

    def opened(folder, runtime="auto", providers=None):
        return PlanSession(manifests.read(folder)) if runtime == "tensorrt" else real(folder, runtime, providers)

    real = Session.open
    monkeypatch.setattr(Session, "open", staticmethod(opened))
    monkeypatch.setattr(gpu, "find", lambda: gpu.Gpu("a GPU", 89))


def test_on_the_plans_gpu_the_plan_decides(home, tmp_path, monkeypatch):
    pretend_gpu(monkeypatch)
    metrics = export(home, tmp_path / "engine", "--plugins", "none")["metrics"]
    assert metrics["runtime"] == "tensorrt"
    assert 1e-4 < metrics["largest_logit_difference"] < 0.1
    stated = json.loads((tmp_path / "engine" / "engine.json").read_text())
    assert stated["plan"] == {"built": True, "was_run": True}
    assert stated["verified"]["onnxruntime"]["largest_logit_difference"] < 1e-4
    assert "float16_on_cpu" not in stated["verified"]


def test_a_plan_that_differs_fails_with_the_layer(home, tmp_path, monkeypatch):
    pretend_gpu(monkeypatch, wrong=0.4)
    spoilt = tmp_path / "spoilt.onnx"
    weights = kit.tensors(SIZES)
    weights["layers.1.attention.norm.scale"] += 0.3
    files.save(graph.build(weights, SIZES, precision="float16", layout="packed"), spoilt)
    runner = lambda *arguments: lambda batch: runners.onnx_runner(spoilt, batch, "packed")  # noqa: E731
    monkeypatch.setattr(plan_runner, "plan_runner", runner)
    with pytest.raises(verify.GateError, match=r"tensorrt does not .* differs by 0\.4.*: layer_1/attention/norm by"):
        export(home, tmp_path / "engine", "--plugins", "none")


def test_a_plan_for_another_gpu_is_said_not_to_be_run(monkeypatch):
    def here(found):
        monkeypatch.setattr(gpu, "find", lambda: found)
        return verify.cannot_run((80, 120))

    assert here(gpu.Gpu("a GPU", 89)) == "it is for sm_80, sm_120, here is sm_89"
    assert here("CUDA sees no device") == "no GPU here: CUDA sees no device"
    assert here(gpu.Gpu("a GPU", 120)) == ""

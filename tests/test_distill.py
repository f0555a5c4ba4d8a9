"""distill.py from end to end in small: stages, what a run leaves behind, killing, caching, the teacher, bad input."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
import tiny
from distill_kit import QUESTIONS, SMALL, STEPS, TASK, distil, flags, make_teacher
from safetensors.numpy import load_file, save_file

from configs import options
from configs.errors import UsageError
from distill import prepare, stages
from distill.config import INTERMEDIATE, DistillConfig
from heads import default
from model import run_folder, weights
from model.bert import Bert, Layer
from train import evaluate
from train.hardware import Hardware

SPAN = default()


class KilledError(BaseException):
    """What a kill looks like from inside."""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a teacher of two layers that nobody trained, its data, and a finished student of half its width."""
    folder = tmp_path_factory.mktemp("distill")
    make_teacher(folder / "teacher")
    tiny.questions(folder / "train.json", QUESTIONS)
    tiny.questions(folder / "dev.json", 8)
    metrics = distil(flags(folder, folder / "student"))
    (folder / "student.json").write_text(json.dumps(metrics), encoding="utf-8")
    return folder


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in tiny.lines(run)]


def test_a_student_learns_in_two_stages(home):
    lines = tiny.lines(home / "student")
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert [line["stage"] for line in lines] == ["task"] * TASK + ["prediction"] * (STEPS - TASK)
    assert lines[TASK - 1]["loss"] < 0.7 * lines[0]["loss"]
    assert lines[-1]["prediction"] < lines[TASK]["prediction"]
    rates = [line["learning_rate"] for line in lines]
    assert rates[:TASK] == [pytest.approx(1e-2)] * TASK  # constant, as TinyBERT's first stage
    assert rates[TASK:] == sorted(rates[TASK:], reverse=True) != [rates[TASK]] * (STEPS - TASK)


def test_every_loss_and_every_layers_share_of_it_is_told(home):
    first, last = tiny.lines(home / "student")[0], tiny.lines(home / "student")[-1]
    assert {"embedding", "hidden", "hidden_1", "attention", "attention_1", "relation", "relation_1"} <= first.keys()
    assert first["loss"] == pytest.approx(sum(first[name] for name in INTERMEDIATE), rel=1e-5)
    assert "hidden" not in last
    assert last["loss"] == last["prediction"]


def test_the_run_folder_is_that_of_a_fine_tuned_model(home):
    run, metrics = home / "student", json.loads((home / "student.json").read_text())
    names = {path.name for path in run.iterdir()}
    assert names == {"config.json", "best", "last", "best-task", "last-task", "vocab.txt", "metrics.jsonl", "events"}
    info = run_folder.read(run)
    assert (info.window, info.stride, info.query, info.max_answer_tokens) == (64, 32, 24, 20)  # the teacher's
    assert (info.bert.hidden, info.bert.layers) == (16, 1)
    assert info.made["layer_map"] == [2]
    best = load_file(run / "best" / "model.safetensors")
    assert set(best) == set(weights.expected_shapes(info.bert, SPAN))  # no projection
    alone = evaluate.main(evaluate.EvaluateConfig(run=str(run), dev=str(home / "dev.json")))["metrics"]
    assert alone == {name: metrics["best"][name] for name in ("exact", "f1", "total")}
    assert (metrics["updates_task"], metrics["updates_prediction"], metrics["updates"]) == (TASK, STEPS - TASK, STEPS)
    assert metrics["parameters"] == sum(array.size for array in best.values())


def test_the_task_stage_trains_the_encoder_and_the_projection_and_leaves_the_head(home):
    last, best = load_file(home / "student" / "last-task" / "state.safetensors"), home / "student" / "best-task"
    assert {"projection.all.kernel", "projection.all.bias", "adam_mean.projection.all.kernel"} <= set(last)
    assert np.abs(last["projection.all.bias"]).max() > 0
    assert not [name for name in last if "span" in name]
    after, end = load_file(best / "model.safetensors"), load_file(home / "student" / "best" / "model.safetensors")
    assert (after["span.bias"] == 0).all()  # as drawn
    assert (end["span.kernel"] != after["span.kernel"]).all()


def test_a_run_killed_in_each_stage_ends_with_the_bits_of_an_uninterrupted_one(home, tmp_path):
    argv, real = flags(home, tmp_path / "run"), stages.epoch_batches
    for steps in (3, 7):  # three of the task stage; from step 2 four more of it and three of the prediction stage
        left = steps

        def dying(*given):
            nonlocal left
            for batch in real(*given):
                if not left:
                    raise KilledError
                left -= 1
                yield batch

        resume = ["--resume"] if steps == 7 else []
        with mock.patch.object(stages, "epoch_batches", dying), pytest.raises(KilledError):
            distil([*argv, *resume])
    metrics = distil([*argv, "--resume"])
    assert_same_run(tmp_path / "run", home / "student")
    assert metrics == json.loads((home / "student.json").read_text())


def assert_same_run(one: Path, other: Path) -> None:
    """Weights, slots and projections of all stages are the same bits, and the same lines were told once."""
    for name in ("best", "best-task", "last", "last-task"):
        for path in (other / name).glob("*.safetensors"):
            assert path.read_bytes() == (one / name / path.name).read_bytes(), path
    told = [[{k: v for k, v in line.items() if k not in ("seconds", "seq_per_s")} for line in tiny.lines(run)]
            for run in (one, other)]  # fmt: skip
    assert told[0] == told[1]


def test_a_run_killed_between_two_stages_starts_the_second_from_the_first(home, tmp_path):
    run = shutil.copytree(home / "student", tmp_path / "run")
    shutil.rmtree(run / "last")
    shutil.rmtree(run / "best")
    distil([*flags(home, run), "--resume"])
    assert_same_run(run, home / "student")


def test_a_stage_runs_alone_from_the_folder_of_another(home, tmp_path):
    """The second stage from a folder that holds what the first one left is the second stage of the whole run."""
    first = shutil.copytree(home / "student", tmp_path / "first", ignore=shutil.ignore_patterns("best", "last*"))
    (first / "best-task").rename(first / "best")
    sizes = [word for word in SMALL[8:]]
    argv = flags(home, tmp_path / "run")[: -len(SMALL)] + sizes
    distil([*argv, "--student", str(first), "--stages", "prediction", "--prediction-epochs", "1"])
    alone = tiny.lines(tmp_path / "run")
    assert {line["stage"] for line in alone} == {"prediction"}
    # the order of the data is another one, so the first losses are near, not equal; a fresh student's are far above
    assert alone[0]["loss"] == pytest.approx(tiny.lines(home / "student")[TASK]["loss"], rel=0.2)
    assert not (tmp_path / "run" / "last-task").exists()


def test_cached_and_live_teacher_give_the_same_losses(home, tmp_path, capsys):
    argv = [*flags(home, tmp_path / "live"), "--attention-weight", "0", "--task-epochs", "1"]
    distil(argv)
    cached = [*argv, "--out", str(tmp_path / "cached"), "--cache-teacher", "--cache", str(tmp_path)]
    with mock.patch.object(prepare.Objective, "__init__", forget_teacher):  # nobody to ask: it has to come from disk
        distil(cached)
    assert "computed once" in capsys.readouterr().out
    np.testing.assert_allclose(losses(tmp_path / "cached"), losses(tmp_path / "live"), rtol=1e-4)
    kept = {path.name for path in tmp_path.glob("teacher-*/*")}
    assert {"teacher.start", "teacher.end", "teacher.hidden.0", "teacher.hidden.1", "teacher.query.1"} <= kept
    distil([*cached, "--resume"])
    assert "found in" in capsys.readouterr().out


REAL_INIT = prepare.Objective.__init__


def forget_teacher(self, student, teacher, recipe, projections):
    REAL_INIT(self, student, None, recipe, projections)


def test_what_does_not_fit_the_budget_is_asked_live_and_attention_always_is(home, tmp_path, capsys):
    argv = [
        *flags(home, tmp_path / "run"),
        "--cache-teacher",
        "--cache",
        str(tmp_path),
        "--cache-budget-gib",
        "0.00002",
    ]
    config = options.parse(DistillConfig, [*argv, "--attention-weight", "0"], "distill")
    machine = Hardware(False, None, rank=0, ranks=1, chief=True)
    with tiny.eager():
        task, prediction = prepare.prepare(config, machine, print).stages
        assert (task.extend, prediction.extend is not None) == (None, True)
        assert "stage task: the teacher's outputs need" in capsys.readouterr().out
        prepare.prepare(options.parse(DistillConfig, argv, "distill"), machine, print)
    assert "attention scores are not kept on disk" in capsys.readouterr().out


def test_the_teacher_is_asked_once_a_batch_without_dropout_and_is_never_changed(home, tmp_path):
    seeds, real = [], Bert.call

    def call(self, *given, seed=None, **more):
        if self.config.layers == 2:
            seeds.append((seed, self.config.dropout, self.compute_dtype))
        return real(self, *given, seed=seed, **more)

    argv = [*flags(home, tmp_path / "run"), "--task-epochs", "1", "--prediction-epochs", "1", "--amp", "bfloat16"]
    before = (home / "teacher" / "best" / "model.safetensors").read_bytes()
    with mock.patch.object(Bert, "call", call):
        distil(argv)
    assert seeds == [(None, 0.0, "bfloat16")] * 4
    assert (home / "teacher" / "best" / "model.safetensors").read_bytes() == before
    exact = tiny.lines(home / "student")[0]
    rough = tiny.lines(tmp_path / "run")[0]
    for name in INTERMEDIATE:
        assert rough[name] == pytest.approx(exact[name], rel=0.05), name


def test_attention_is_written_out_only_where_its_scores_are_learnt(home, tmp_path):
    config = options.parse(DistillConfig, flags(home, tmp_path / "run"), "distill")
    wanted, real = [], Layer.call

    def record(self, *given, want=frozenset(), **more):
        wanted.append((self.config.layers, "scores" in want))
        return real(self, *given, want=want, **more)

    with tiny.eager(), mock.patch.object(Layer, "call", record):
        task, prediction = prepare.prepare(config, Hardware(False, None, 0, 1, True), lambda *words: None).stages
        batch = {name: tf.constant(value) for name, value in task.features.assemble(np.arange(2), 64).items()}
        for stage in (task, prediction):
            stage.objective(batch | {"weight": tf.ones(2)}, None)
    # (layers of the model, scores written out): the teacher's first layer is mapped to none of the student's
    assert wanted == [(2, False), (2, True), (1, True), (2, False), (2, False), (1, False)]


def test_the_general_stage_learns_from_text_and_pretrained_weights_alone(home, tmp_path):
    (tmp_path / "plain.txt").write_text("the north tower was built in the old town. " * 80, encoding="utf-8")
    argv = [*flags(home, tmp_path / "run"), "--teacher", str(home / "teacher" / "source"), "--stages", "general"]
    argv += ["--data", str(tmp_path / "plain.txt"), "--text-window", "32", "--general-epochs", "2"]
    metrics = distil([*argv, "--general-lr", "1e-2"])
    assert {line["stage"] for line in tiny.lines(tmp_path / "run")} == {"general"}
    assert losses(tmp_path / "run")[-1] < losses(tmp_path / "run")[0]
    assert metrics["best"] == {"step": metrics["updates"]}
    assert weights.load(str(tmp_path / "run")).config.hidden == 16


def test_what_is_scored_on_dev_are_the_best_weights_not_the_last(tmp_path):
    (tmp_path / "best").mkdir()
    save_file({"a": np.ones(2, np.float32)}, tmp_path / "best" / "model.safetensors")
    run_folder.write(tmp_path, run_folder.RunInfo({}, {}, 64, 32, 24, 20, no_answer_threshold=-3.0))
    variable, seen = tf.Variable(tf.zeros(2)), []
    final = mock.Mock(predictions=lambda: seen.append(variable.numpy().tolist()))
    score = mock.Mock(return_value={"f1": 1.0})
    prepared = mock.Mock(final=final, model=mock.Mock(names=lambda: {"a": variable}, head=mock.Mock(metrics=score)))
    assert stages.score_best(prepared, tmp_path) == {"dev_f1": 1.0}
    assert seen == [[1.0, 1.0]]
    assert score.call_args[0][2] == -3.0  # the threshold was picked elsewhere, too


def test_seeds_share_what_is_prepared_and_each_starts_anew(home, tmp_path):
    config = options.parse(DistillConfig, flags(home, tmp_path / "run"), "distill")
    prepared = prepare.prepare(config, Hardware(False, None, 0, 1, True), lambda *words: None)
    variables = prepared.model.names() | prepared.projections.variables()
    variables |= {f"{stage.name} {name}": v for stage in prepared.stages for name, v in stage.step.variables().items()}

    def started(**given) -> dict[str, np.ndarray]:
        prepared.restart(replace(config, **given))
        return {name: variable.numpy() for name, variable in variables.items()}

    first = started()
    assert np.abs(first["projection.all.kernel"]).max() > 0
    for variable in variables.values():
        variable.assign_add(tf.ones_like(variable))
    again, other = started(), started(seed=7, task_lr=0.5)
    assert all((again[name] == value).all() for name, value in first.items())
    for name in ("projection.all.kernel", "span.kernel", "layers.0.ffn.in.kernel"):
        assert (other[name] != first[name]).any(), name
    assert [float(stage.peak) for stage in prepared.stages] == pytest.approx([0.5, 1e-2])


def test_copies_go_into_the_task_stage_and_only_if_asked_into_the_other(home, tmp_path):
    sizes = []
    for more in ([], ["--augment", "2"], ["--augment", "2", "--augment-prediction"]):
        config = options.parse(DistillConfig, [*flags(home, tmp_path / "run"), *more], "distill")
        made = prepare.prepare(config, Hardware(False, None, 0, 1, True), lambda *words: None).stages
        sizes.append([len(stage.features) for stage in made])
    assert sizes[0] == [QUESTIONS, QUESTIONS]
    assert sizes[1][0] > 2.5 * QUESTIONS
    assert sizes[1:] == [[sizes[1][0], QUESTIONS], [sizes[1][0]] * 2]


def test_dev_is_scored_once_with_what_the_held_out_part_picked(home, tmp_path):
    argv = [*flags(home, tmp_path / "run"), "--stages", "prediction", "--holdout", "0.2"]
    data = json.loads((home / "train.json").read_text())
    passages = [passage for article in data["data"] for passage in article["paragraphs"]]
    data["data"] = [{"title": str(index), "paragraphs": [passage]} for index, passage in enumerate(passages)]
    (tmp_path / "train.json").write_text(json.dumps(data))
    metrics = distil([*argv, "--data", str(tmp_path / "train.json"), "--prediction-epochs", "1"])
    assert metrics["total"] == QUESTIONS // 5
    assert metrics["dev_total"] == 8
    scored = evaluate.main(evaluate.EvaluateConfig(run=str(tmp_path / "run"), dev=str(home / "dev.json")))["metrics"]
    assert metrics["dev_f1"] == pytest.approx(scored["f1"])


def test_resuming_with_other_settings_names_them_but_a_cache_is_no_other_setting(home):
    argv = [*flags(home, home / "student"), "--resume"]
    with pytest.raises(UsageError, match=r"layer_map \(uniform -> last\), stages"):
        distil([*argv, "--layer-map", "last", "--stages", "task"])
    before = (home / "student" / "metrics.jsonl").read_bytes()
    told, again = json.loads((home / "student.json").read_text()), distil([*argv, "--cache-teacher"])
    assert again == told | {"compiled_shapes": 0}  # nothing was left to do
    assert (home / "student" / "metrics.jsonl").read_bytes() == before

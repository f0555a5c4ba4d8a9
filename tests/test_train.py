"""train.py from end to end in small, and what bad input gets."""

import json
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
import tiny
from safetensors.numpy import load_file

from configs.errors import UsageError, UserError
from model import run_folder
from train import evaluate, hardware, loop

LONG = ["--epochs", "4", "--eval-every", "8", "--log-every", "4"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a model, a data set, and a finished run in float32 on it."""
    folder = tmp_path_factory.mktemp("train")
    tiny.questions(folder / "dev.json", 30)
    metrics = tiny.train([*tiny.arguments(folder), *LONG, "--dev", str(folder / "dev.json")])
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    return folder


@pytest.fixture
def flags(home, tmp_path):
    """Flags of a run in a folder of its own, on the model and the data of `home`."""
    return [*tiny.arguments(home), "--out", str(tmp_path / "run")]


def test_a_run_learns_and_leaves_a_folder_that_describes_itself(home):
    run, metrics = home / "run", json.loads((home / "metrics.json").read_text())
    losses = [line["loss"] for line in tiny.lines(run)]
    assert losses[-1] < losses[0] - 0.3
    assert {"exact", "f1", "best", "updates", "skipped_steps", "loss_scale"} <= metrics.keys()
    names = {path.name for path in run.iterdir()}
    assert names == {"config.json", "best", "last", "vocab.txt", "metrics.jsonl", "events"}
    info = run_folder.read(run)
    assert (info.window, info.stride, info.query, info.version) == (64, 32, 24, "1.1")
    assert info.bert.hidden == tiny.WIDTH
    assert info.no_answer_threshold is None
    assert info.made["settings"]["lr"] == 5e-3
    assert (run / "vocab.txt").read_bytes() == (home / "model" / "vocab.txt").read_bytes()
    assert {array.dtype for array in load_file(run / "best" / "model.safetensors").values()} == {np.dtype("float32")}
    told = {"step", "updates", "skipped_steps", "loss", "gradient_norm", "learning_rate", "loss_scale", "seq_per_s"}
    assert told <= tiny.lines(run)[0].keys()


def test_the_best_weights_are_those_of_the_best_evaluation(home):
    dev, metrics = tiny.lines(home / "run", "dev_f1"), json.loads((home / "metrics.json").read_text())
    steps = [line["step"] for line in dev]
    assert steps == [*range(8, steps[-1], 8), tiny.lines(home / "run")[-1]["step"]]
    assert metrics["best"]["f1"] == max(line["dev_f1"] for line in dev)
    assert json.loads((home / "run" / "best" / "metrics.json").read_text()) == metrics["best"]
    alone = evaluate.main(evaluate.EvaluateConfig(run=str(home / "run"), dev=str(home / "dev.json")))["metrics"]
    assert alone == {name: metrics["best"][name] for name in ("exact", "f1", "total")}


def test_evaluate_writes_predictions_in_the_official_format(home, tmp_path):
    config = evaluate.EvaluateConfig(
        run=str(home / "run"), dev=str(home / "dev.json"), predictions=str(tmp_path / "out.json"), limit=5
    )
    evaluate.main(config)
    written = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert len(written) == 5
    assert all(isinstance(text, str) and text for text in written.values())


def test_version_2_stores_the_threshold_that_scored_best(home, tmp_path):
    data, run = tiny.questions(tmp_path / "two.json", 60, version="2.0"), tmp_path / "run"
    argv = [*tiny.arguments(home), "--out", str(run), "--data", str(data), "--dev", str(data), "--epochs", "1", "--amp"]
    metrics = tiny.train(argv)
    info = run_folder.read(run)
    assert info.version == "2.0"
    assert info.no_answer_threshold == metrics["best"]["threshold"]
    assert 0 < metrics["NoAns_total"] < metrics["total"] == 60
    always_none = 100 * metrics["NoAns_total"] / metrics["total"]
    assert metrics["f1"] >= always_none - 1e-6  # the best threshold is never worse than answering nothing


def test_a_run_folder_is_weights_for_the_next_run(home, tmp_path, capsys):
    argv = [*tiny.arguments(home), "--out", str(tmp_path / "next"), "--model", str(home / "run"), "--limit", "8"]
    with mock.patch.object(loop, "run", return_value={}) as run:
        tiny.train([*argv, "--epochs", "1"])
    assert "random: none" in capsys.readouterr().out
    weights = {name: variable.numpy() for name, variable in run.call_args[0][0].weights.items()}
    best = load_file(home / "run" / "best" / "model.safetensors")
    assert best.keys() == weights.keys()
    assert all((best[name] == weights[name]).all() for name in best)


def test_going_on_with_a_finished_run_changes_nothing(home):
    before = {path: path.read_bytes() for path in (home / "run").rglob("*.safetensors")}
    dev = ["--dev", str(home / "dev.json")]
    metrics = tiny.train([*tiny.arguments(home), *LONG, *dev, "--resume"])
    assert metrics["best"] == json.loads((home / "metrics.json").read_text())["best"]
    assert before == {path: path.read_bytes() for path in (home / "run").rglob("*.safetensors")}


def test_resuming_with_other_questions_under_the_same_name_is_refused(home, tmp_path):
    argv = [*tiny.arguments(home), *LONG, "--dev", str(home / "dev.json"), "--resume"]
    data = Path(argv[argv.index("--data") + 1])
    before = data.read_text(encoding="utf-8")
    try:
        questions = json.loads(before)
        questions["data"].reverse()
        questions["data"][0]["paragraphs"].reverse()
        questions["data"][0]["paragraphs"][0]["qas"].reverse()
        data.write_text(json.dumps(questions), encoding="utf-8")
        with pytest.raises(UserError, match=r"not those that .*last was written with"):
            tiny.train(argv)
    finally:
        data.write_text(before, encoding="utf-8")


def test_resuming_with_other_settings_names_them(home):
    argv = [*tiny.arguments(home), *LONG, "--dev", str(home / "dev.json"), "--resume", "--lr", "2e-3", "--seed", "5"]
    with pytest.raises(UsageError, match=r"lr \(0.005 -> 0.002\), seed \(1 -> 5\)") as caught:
        tiny.train(argv)
    assert caught.value.exit_code == 2


def test_resuming_where_there_is_no_run_says_so(flags):
    with pytest.raises(UsageError, match=r"no run in .*leave --resume out"):
        tiny.train([*flags, "--resume"])


def test_a_run_that_exists_is_not_touched_without_being_told(home):
    with pytest.raises(UsageError, match=r"exists; add --resume .* --overwrite") as caught:
        tiny.train([*tiny.arguments(home), *LONG])
    assert caught.value.exit_code == 2


def test_overwrite_refuses_a_folder_that_is_no_run(home, tmp_path):
    other = shutil.copytree(home / "model", tmp_path / "model")  # it has a config.json, too
    with pytest.raises(UsageError, match="is no run folder"):
        tiny.train([*tiny.arguments(home), "--out", str(other), "--overwrite"])
    assert (other / "model.safetensors").is_file()


def test_overwrite_refuses_to_delete_what_the_run_reads(home):
    with pytest.raises(UsageError, match="would delete --model"):
        tiny.train([*tiny.arguments(home), "--model", str(home / "run"), "--overwrite"])
    with pytest.raises(UsageError, match="would delete --data"):
        tiny.train([*tiny.arguments(home), "--data", str(home / "run" / "sub" / "train.json"), "--overwrite"])


def test_overwrite_keeps_the_old_run_when_the_new_one_cannot_start(home, tmp_path):
    run = shutil.copytree(home / "run", tmp_path / "run")
    with pytest.raises(UserError):
        tiny.train([*tiny.arguments(home), "--out", str(run), "--data", str(tmp_path / "missing.json"), "--overwrite"])
    assert (run / "best" / "model.safetensors").is_file()


def test_overwrite_starts_from_an_empty_folder(home, tmp_path):
    run = shutil.copytree(home / "run", tmp_path / "run")
    with mock.patch.object(loop, "run", return_value={}):
        tiny.train([*tiny.arguments(home), "--out", str(run), "--overwrite"])
    assert {path.name for path in run.iterdir()} == {"config.json", "vocab.txt"}


# What bad input gets: flags, and what the error must say.
BAD = {
    "no model": (["--model", "nowhere/at/all"], "nowhere/at/all"),
    "no data": (["--data", "nowhere.json"], "nowhere.json"),
    "a size without a vocabulary": (["--model", "bert-tiny"], "--vocab"),
    "a vocabulary that is not there": (["--vocab", "nowhere.txt"], "nowhere.txt"),
    "windows longer than the position table": (["--window", "128"], "--window 128 .* 64"),
    "too small a loss scale": (["--amp", "float16", "--loss-scale-initial", "0.5"], "0.5 lies outside"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_and_leaves_nothing_behind(case, flags, tmp_path):
    given, named = BAD[case]
    with pytest.raises(UserError, match=named):
        tiny.train([*flags, *given])
    assert not (tmp_path / "run").exists()


def test_a_vocabulary_larger_than_the_embeddings_is_refused(home, tmp_path):
    model = tiny.weights(tmp_path / "model", rows=100, pieces=101)
    with pytest.raises(UserError, match=r"101 pieces.* 100 rows"):
        tiny.train([*tiny.arguments(home), "--model", str(model), "--out", str(tmp_path / "run")])


def test_weights_that_are_not_finite_are_refused(home, tmp_path):
    model = tiny.weights(tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    tensors["encoder.layer.0.output.dense.bias"][3] = np.nan
    tiny.save_file(tensors, model / "model.safetensors")
    with pytest.raises(UserError, match=r"layers\.0\.ffn\.out\.bias not finite"):
        tiny.train([*tiny.arguments(home), "--model", str(model), "--out", str(tmp_path / "run")])


def test_an_unknown_flag_is_told_its_nearest(flags):
    with pytest.raises(UsageError, match=r"--warmpu.*--warmup") as caught:
        tiny.train([*flags, "--warmpu", "0.2"])
    assert caught.value.exit_code == 2


def test_asking_for_a_gpu_where_there_is_none_is_an_error():
    with (
        mock.patch.object(tf.config, "list_physical_devices", return_value=[]),
        pytest.raises(UserError, match=r"no GPU is visible.*--device gpu needs one; check nvidia-smi") as caught,
    ):
        hardware.prepare("gpu", "none", False, 1)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("error", [
    tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor"),
    tf.errors.InternalError(None, None, "cudaSetDevice() on GPU:0 failed. Status: out of memory"),
])  # fmt: skip
def test_a_full_gpu_is_told_with_what_needs_less(error):
    @hardware.memory_told()
    def run():
        raise error

    with pytest.raises(UserError, match=r"memory does not suffice \((OOM|cudaSet).*nvidia-smi.*--recompute"):
        run()


def test_other_errors_of_tensorflow_stay_what_they_are():
    with pytest.raises(tf.errors.InternalError, match="something else"), hardware.memory_told():
        raise tf.errors.InternalError(None, None, "something else")


def test_fifty_skips_in_a_row_end_the_run_with_the_variable_named(tmp_path):
    with tiny.eager(), pytest.raises(UserError, match=r"50 steps in a row .* is 1; .* is w.kernel") as caught:
        loop.run(tiny.job(tmp_path, epochs=15, spoil=True, save_every=10))
    assert caught.value.exit_code == 1
    last = load_file(tmp_path / "last" / "model.safetensors")
    assert all(np.isfinite(array).all() for array in last.values())


@pytest.mark.parametrize("ranks", [1, 2])  # one alone looks when it reads, several at the same steps
def test_a_run_that_gets_nowhere_ends_soon_however_seldom_it_logs(tmp_path, ranks):
    job = tiny.job(tmp_path, epochs=50, spoil=True, log_every=1000, save_every=1000, eval_every=1000, ranks=ranks)
    with tiny.eager(), pytest.raises(UserError, match="in a row"):
        loop.run(job)
    assert 50 <= int(job.step.loss_scale.skipped.numpy()) <= 75

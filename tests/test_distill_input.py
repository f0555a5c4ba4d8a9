"""What stops a distillation before it starts: a teacher that knows nothing, parts that do not fit, bad settings."""

import shutil
from unittest import mock

import numpy as np
import pytest
import tiny
from distill_kit import SMALL, distil, flags, make_teacher

from configs.errors import UserError
from data import squad
from data.features import FeatureOptions, featurise
from data.tokenize import Tokenizer
from distill import teacher
from heads import default
from model import run_folder


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a teacher that nobody trained, a student's folder, and data."""
    folder = tmp_path_factory.mktemp("input")
    make_teacher(folder / "teacher")
    make_teacher(folder / "student")
    tiny.questions(folder / "train.json", 20)
    tiny.questions(folder / "dev.json", 8)
    return folder


@pytest.fixture
def asked(home):
    """Questions for the teacher and their windows, with logits that point at the right answers."""
    tokenizer = Tokenizer(home / "teacher" / "vocab.txt")
    dataset = squad.read(home / "dev.json")
    features = featurise(dataset, tokenizer, FeatureOptions(64, 32, 24))
    right = [[np.eye(n, dtype=np.float32)[at] * 9 for n, at in zip(features.length, places, strict=True)]
             for places in (features.start_position, features.end_position)]  # fmt: skip

    def evaluator(start, end):
        return mock.Mock(head=default(), dataset=dataset, features=features, logits=lambda: (start, end))

    return evaluator, right, tokenizer


def test_a_good_teacher_passes_with_its_figures(asked):
    evaluator, right, tokenizer = asked
    figures = teacher.check(evaluator(*right), tokenizer, 5.0, "runs/teacher")
    assert figures["f1"] > 80 > 60 > figures["chance_f1"]
    assert figures["questions"] == 8


def test_a_teacher_near_chance_stops_the_run_with_the_figures(asked):
    evaluator, right, tokenizer = asked
    random = np.random.default_rng(3)
    noise = [[random.normal(size=len(row)) for row in rows] for rows in right]
    with pytest.raises(UserError, match=r"on 8 questions .* F1 [\d.]+; chance is F1 [\d.]+; .* unknown .* vocab.txt"):
        teacher.check(evaluator(*noise), tokenizer, 25.0, "runs/teacher")


def test_a_teacher_with_start_and_end_exchanged_is_told(asked):
    evaluator, (start, end), tokenizer = asked
    with pytest.raises(UserError, match=r"with start and end exchanged it has F1 [\d.]+: .* another label order"):
        teacher.check(evaluator(end, start), tokenizer, 5.0, "runs/teacher")


def test_the_check_runs_before_anything_is_written(home, tmp_path):
    argv = [*flags(home, tmp_path / "run"), "--check-questions", "8", "--check-margin", "60"]
    with pytest.raises(UserError, match="A student cannot learn from that"):
        distil(argv)
    assert not (tmp_path / "run").exists()


def test_a_student_with_another_vocabulary_or_label_order_is_refused(home, tmp_path):
    other = shutil.copytree(home / "student", tmp_path / "other")
    argv = [*flags(home, tmp_path / "run")[: -len(SMALL)], *SMALL[8:], "--student", str(other)]
    words = (other / "vocab.txt").read_text().splitlines()
    (other / "vocab.txt").write_text("\n".join([*words[:100], words[101], words[100], *words[102:]]))
    with pytest.raises(UserError, match="another vocabulary than the teacher: 400 and 400 pieces, line 101"):
        distil(argv)
    shutil.copyfile(home / "teacher" / "vocab.txt", other / "vocab.txt")
    info = run_folder.read(other)
    info.labels = ["no", "yes"]
    run_folder.write(other, info)
    with pytest.raises(UserError, match=r"labels \['no', 'yes'\], the teacher \[\]"):
        distil(argv)


# What bad input gets: flags, and what the error must say.
BAD = {
    "no teacher": (["--teacher", "nowhere"], "nowhere"),
    "windows longer than the position table": (["--window", "128"], "128 tokens .* has 64"),
    "temperature zero": (["--temperature", "0"], "--temperature must be more than 0"),
    "an unknown flag": (["--temprature", "2"], "--temprature .*--temperature"),
    "a layer map out of range": (["--layer-map", "3"], "no layer 3"),
    "an unknown stage": (["--stages", "first"], "general, task or prediction"),
    "no article to hold out": (["--holdout", "0.5", "--limit", "1"], "cannot be set aside"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_and_leaves_nothing_behind(case, home, tmp_path):
    given, said = BAD[case]
    with pytest.raises(UserError, match=said):
        distil([*flags(home, tmp_path / "run"), *given])
    assert not (tmp_path / "run").exists()


def test_a_teacher_without_a_head_is_told_to_be_fine_tuned(home, tmp_path):
    headless = make_teacher(tmp_path / "headless", head=False)
    with pytest.raises(UserError, match=r"no question answering head .* train.py"):
        distil([*flags(home, tmp_path / "run"), "--teacher", str(headless)])

"""Windows: every context token is covered, labels point at the answer itself, and a cache changes nothing."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data_kit import dataset, example, letters, shared, write_vocab

from configs.errors import UserError
from data import features as features_module
from data import squad
from data.features import FeatureOptions, Features, featurise
from data.tokenize import Tokenizer
from data.windows import cut

SMALL = FeatureOptions(window=12, stride=3, query=4)


def answer_text(features: Features, contexts: list[str], row: int) -> str | None:
    """The original characters under a window's label, or None for [CLS]."""
    first, last = features.start_position[row], features.end_position[row]
    if (first, last) == (0, 0):
        return None
    shift = features.context_start[features.context[row]] + features.first[row] - features.query_length(row) - 2
    begin, end = features.context_offsets[shift + first, 0], features.context_offsets[shift + last, 1]
    return contexts[features.example[row]][begin:end]


def slow_windows(tokens: int, room: int, stride: int) -> list[tuple[int, int]]:
    """(first, count) as the original BERT script makes them, one after the other."""
    windows, start = [], 0
    while True:
        count = min(tokens - start, room)
        windows.append((start, count))
        if start + count >= tokens:
            return windows
        start += min(count, stride)


def slow_max_context(windows: list[tuple[int, int]], this: int, token: int) -> bool:
    best, best_score = None, None
    for index, (first, count) in enumerate(windows):
        if first <= token < first + count:
            score = min(token - first, first + count - 1 - token) + 0.01 * count
            if best_score is None or score > best_score:
                best, best_score = index, score
    return best == this


def test_a_window_is_cls_question_sep_piece_sep(tmp_path: Path):
    tokenizer = letters(tmp_path)
    features = featurise(dataset(example("1", "abcde", "who", "cd")), tokenizer, SMALL)
    batch = features.assemble(np.array([0, -1]), pad_to=14)
    name = {i: piece for i, piece in enumerate(tokenizer.vocab_file.read_text().split())}
    assert [name[i] for i in batch["token_ids"][0]] == (
        ["[CLS]", "w", "##h", "##o", "[SEP]", "a", "##b", "##c", "##d", "##e", "[SEP]", "[PAD]", "[PAD]", "[PAD]"]
    )
    assert batch["segment_ids"][0].tolist() == [0] * 5 + [1] * 6 + [0] * 3
    assert batch["padding_mask"][0].tolist() == [1] * 11 + [0] * 3
    assert (batch["start_positions"][0], batch["end_positions"][0]) == (7, 8)
    # a filler still has two real tokens, or softmax over nothing would be NaN
    assert [name[i] for i in batch["token_ids"][1]] == ["[CLS]", "[SEP]"] + ["[PAD]"] * 12
    assert batch["padding_mask"][1].sum() == 2
    assert batch["row"].tolist() == [0, -1]
    assert {array.dtype for array in batch.values()} == {np.dtype(np.int32)}


def test_windows_are_those_of_the_original_script():
    random = np.random.default_rng(0)
    for _ in range(200):
        options = FeatureOptions(window=int(random.integers(10, 40)), stride=int(random.integers(1, 30)), query=6)
        query, context = random.integers(0, 7, size=5), random.integers(0, 120, size=5)
        example, first, count = cut(options, query, context)
        for i in range(5):
            rows = example == i
            expected = slow_windows(context[i], options.window - query[i] - 3, options.stride)
            assert list(zip(first[rows], count[rows], strict=True)) == expected


@pytest.mark.parametrize("options", [SMALL, FeatureOptions(window=30, stride=30, query=4), FeatureOptions(9, 1, 4)])
def test_a_token_has_its_maximum_context_in_exactly_one_window(tmp_path: Path, options: FeatureOptions):
    features = featurise(dataset(*(example(str(n), "x" * n) for n in (1, 5, 6, 23, 50))), letters(tmp_path), options)
    for i in range(len(features.examples)):
        rows = np.flatnonzero(features.example == i)
        windows = [(int(features.first[row]), int(features.count[row])) for row in rows]
        owned = []
        for this, row in enumerate(rows):
            mask = features.max_context(int(row))
            first, count = windows[this]
            assert mask.tolist() == [slow_max_context(windows, this, first + k) for k in range(count)]
            owned += (first + np.flatnonzero(mask)).tolist()
        assert sorted(owned) == list(range(windows[-1][0] + windows[-1][1]))


def test_a_label_covers_the_answer_wherever_a_window_holds_all_of_it_and_is_cls_elsewhere(tmp_path: Path):
    context = "abc def ghi jkl mno pqr stu"
    examples = [example(f"{a}-{b}", context, "who", context[a:b], a) for a in range(27) for b in range(a + 1, 28)]
    examples = [e for e in examples if e.answers[0].text == e.answers[0].text.strip()]
    features = featurise(dataset(*examples), letters(tmp_path), SMALL)
    offsets = features.context_offsets
    for row in range(len(features)):
        answer = examples[features.example[row]].answers[0]
        first, last = features.first[row], features.first[row] + features.count[row] - 1
        inside = offsets[first, 0] <= answer.start and answer.start + len(answer.text) <= offsets[last, 1]
        assert answer_text(features, [context] * len(examples), row) == (answer.text if inside else None)


@pytest.mark.parametrize(
    ("context", "answer", "expected"),
    [
        ("built in (1895-1943) here", "1895", "1895"),  # inside a word of the original
        ("xx towers yy", "tower", "tower"),
        ("xx thetower yy", "eto", "theto"),  # begins in the middle of a piece: all that it touches
        ("the cafe\u0301 was", "cafe\u0301", "cafe"),  # the mark has no token
        ("\U0001f600\U0001f600 the was", "was", "was"),
        ("a\x00b the\u200b tower", "tower", "tower"),
        ("was built \u0301 the", "\u0301", None),  # nothing of the answer has a token
    ],
)
def test_answers_are_found_by_characters_of_the_original_text(tmp_path: Path, context, answer, expected):
    tokenizer = Tokenizer(write_vocab(tmp_path))
    features = featurise(dataset(example("1", context, "who", answer)), tokenizer, FeatureOptions(64, 16, 8))
    assert answer_text(features, [context], 0) == expected


def test_training_uses_the_first_answer_and_impossible_questions_point_at_cls(tmp_path: Path):
    two = squad.Example("1", "", "abcdef", "q", (squad.Answer("c", 2), squad.Answer("e", 4)), False)
    features = featurise(dataset(two, example("2", "abcdef"), version="2.0"), letters(tmp_path), SMALL)
    assert answer_text(features, ["abcdef"] * 2, 0) == "c"
    assert answer_text(features, ["abcdef"] * 2, 1) is None


def test_a_shared_context_is_stored_once_and_a_long_question_is_cut(tmp_path: Path):
    many = dataset(*(example(str(i), "abcdefgh" * 10, "whoever" * i) for i in range(4)))
    features = featurise(many, letters(tmp_path), SMALL)
    assert features.context_start.tolist() == [0, 80]
    assert np.diff(features.question_start).tolist() == [0, 4, 4, 4]
    assert features.length.max() == 12


def test_a_window_too_small_for_the_question_is_an_error(tmp_path: Path):
    with pytest.raises(UserError, match=r"window 67 is too small for a question of up to 64 tokens.*at least 68"):
        featurise(dataset(example("1", "abc")), letters(tmp_path), FeatureOptions(67, 128, 64))
    featurise(dataset(example("1", "abc")), letters(tmp_path), FeatureOptions(68, 128, 64))
    with pytest.raises(UserError, match="stride 0"):
        featurise(dataset(example("1", "abc")), letters(tmp_path), FeatureOptions(384, 0, 64))
    with pytest.raises(UserError, match="no examples"):
        featurise(dataset(), letters(tmp_path))


def test_huge_and_tokenless_contexts_work_beside_ordinary_ones(tmp_path: Path):
    huge = "abc de. " * 25_000  # 200,000 characters
    data = dataset(
        example("empty", "\u0301\x07\u200b", "who"), example("huge", huge + "zz", "who", "zz"), example("s", "ab")
    )
    features = featurise(data, letters(tmp_path))
    rows = np.flatnonzero(features.example == 1)
    assert features.count[features.example == 0].tolist() == [0]
    assert len(rows) > 1000
    assert [answer_text(features, [e.context for e in data.examples], int(row)) for row in rows[[0, -1]]] == [
        None,
        "zz",
    ]
    features.assemble(np.arange(32), 384)
    assert features.max_context(0).tolist() == []


def same(a: Features, b: Features) -> bool:
    return a.examples == b.examples and all(
        np.array_equal(x, y) for name, x in vars(a).items() if name != "examples" for y in [getattr(b, name)]
    )


def test_the_cache_is_used_only_for_the_same_data_vocabulary_and_options(tmp_path: Path, monkeypatch):
    tokenizer, data, cache = letters(tmp_path), dataset(example("1", "abcde", "who", "cd")), tmp_path / "cache"
    fresh = featurise(data, tokenizer, SMALL, cache_dir=cache)
    computed = []
    compute = features_module._compute
    monkeypatch.setattr(features_module, "_compute", lambda *a: computed.append(1) or compute(*a))
    assert same(fresh, featurise(data, tokenizer, SMALL, cache_dir=cache))
    assert not computed
    featurise(dataset(example("1", "abcde", "who", "de")), tokenizer, SMALL, cache_dir=cache)  # another answer
    featurise(data, tokenizer, FeatureOptions(13, 3, 4), cache_dir=cache)
    cased = Tokenizer(tokenizer.vocab_file, lowercase=False)
    featurise(data, cased, SMALL, cache_dir=cache)
    other = tmp_path / "other"
    other.mkdir()
    featurise(data, Tokenizer(write_vocab(other)), SMALL, cache_dir=cache)
    assert len(computed) == 4
    assert not list(cache.glob(".features-*"))


def test_a_broken_cache_is_made_anew_and_a_cache_that_cannot_be_written_costs_nothing(tmp_path: Path, capsys):
    tokenizer, data, cache = letters(tmp_path), dataset(example("1", "abcde", "who", "cd")), tmp_path / "cache"
    fresh = featurise(data, tokenizer, SMALL, cache_dir=cache)
    for file in cache.glob("*/*.npy"):
        file.write_bytes(file.read_bytes()[:-3])
    assert same(fresh, featurise(data, tokenizer, SMALL, cache_dir=cache))
    assert same(fresh, featurise(data, tokenizer, SMALL, cache_dir=cache))
    (tmp_path / "file").write_text("in the way")
    assert same(fresh, featurise(data, tokenizer, SMALL, cache_dir=tmp_path / "file"))
    assert "features are not cached" in capsys.readouterr().out


def test_a_batch_that_does_not_fit_its_padding_is_an_error(tmp_path: Path):
    features = featurise(dataset(example("1", "abcde")), letters(tmp_path), SMALL)
    with pytest.raises(ValueError, match="a window of 11 tokens does not fit 8"):
        features.assemble(np.array([0]), 8)


def test_on_real_data_nearly_every_label_is_the_answer_to_the_letter(tmp_path: Path):
    data = squad.read(shared("dev-v1.1.json.gz"))
    tokenizer = Tokenizer(write_vocab(tmp_path))
    done: list[tuple[int, int]] = []
    features = featurise(data, tokenizer, FeatureOptions(384, 128, 64), progress=lambda *pair: done.append(pair))
    contexts = [e.context for e in data.examples]
    found: dict[int, str] = {}
    for row in range(len(features)):
        text = answer_text(features, contexts, row)
        if text is not None:
            found[int(features.example[row])] = text
    exact = sum(data.examples[i].answers[0].text == text for i, text in found.items())
    assert len(found) > 0.99 * len(data.examples)
    assert exact > 0.99 * len(data.examples)
    assert done[-1][0] == done[-1][1]


def run_python(*arguments: str) -> str:
    root = Path(__file__).resolve().parent.parent
    return subprocess.run([sys.executable, *arguments], cwd=root, capture_output=True, text=True, check=True).stdout


def test_nothing_on_the_way_from_text_to_scores_imports_tensorflow():
    names = ", ".join(f"data.{name}" for name in ("squad", "tokenize", "features", "answers", "metric"))
    assert run_python("-c", f"import sys, {names}; print('tensorflow' in sys.modules)") == "False\n"


def test_the_bench_runs_and_ends_in_a_line_for_machines(tmp_path: Path):
    output = run_python("scripts/bench_features.py", "--vocab", str(write_vocab(tmp_path)), "--questions", "50")
    assert json.loads(output.splitlines()[-1])["metrics"]["questions_per_s"] > 0

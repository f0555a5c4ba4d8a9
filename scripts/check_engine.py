"""Does an engine answer what its checkpoint answers, however its windows are batched? On the machine that it is for.

    python -m scripts.check_engine --engine engines/student --run runs/student --dev dev-v1.1.json.gz

Three things are compared with the checkpoint's float32 logits of all windows of the dev questions:

    scores      EM and F1 of the whole set, with the paired bootstrap interval of the difference
    alone       every window run by itself
    batches     2,000 random batches of mixed lengths, several under way at a time; here each window's logits are
                compared with those that it had alone, too. Its best span must be float32's, wherever that leads by more
                than twice the tolerance

The reference is Keras where TensorFlow is installed, else model.onnx on ONNX Runtime; or a file of Keras's logits that
another machine wrote:

    python -m scripts.check_engine --run runs/student --dev dev-v1.1.json.gz --write-reference logits.npz
"""

import datetime
import itertools
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from configs import command
from configs.errors import UsageError, UserError
from configs.options import setting
from data.features import Features
from export import checkpoint as checkpoints
from export import runners
from export.comparison import Logits, Questions, compare, table
from export.config import ANOTHER_GELU, LOGITS
from scripts import check_engine_reference as reference_file
from serve import manifest as manifests
from serve.packed import Packed
from serve.session import Session

Pair = tuple[np.ndarray, ...]  # start and end logits of a batch, [T] each
WORST = 5  # cases that are told


@dataclass(frozen=True)
class CheckConfig:
    """Compare an engine with its checkpoint: scores, single windows, random batches; or write float32 logits to a file.

    Examples:

      python -m scripts.check_engine --engine engines/student --run runs/student --dev dev-v1.1.json.gz
      python -m scripts.check_engine --run runs/student --dev dev-v1.1.json.gz --write-reference logits.npz
    """

    run: str = setting(required=True, help="run folder that the engine was exported from")
    dev: str = setting(required=True, help="questions: a SQuAD .json or .json.gz, builtin:dev-facts")
    engine: str | None = setting(None, help="engine folder")
    out: str = setting("results/engine_check.json", help="JSON to write")
    runtime: str = setting("tensorrt", choices=("tensorrt", "onnxruntime"), help="what runs the engine")
    reference: str | None = setting(None, help="float32 logits, from --write-reference of the same run and questions")
    write_reference: str | None = setting(None, help="write Keras's float32 logits here and do nothing else")
    limit: int | None = setting(None, least=1, help="take so many questions only")
    batches: int = setting(2000, least=1, help="random batches")
    tolerance: float | None = setting(None, above=0.0, help="largest difference of a logit; none: as for export.py")
    tolerance_f1: float = setting(0.1, least=0.0, help="points of F1 that may be lost")
    minutes: float = setting(5.0, above=0.0, help="for the batches; fewer of them than --batches is a failure")
    seed: int = setting(1, least=0, help="of the batches")

    def __post_init__(self):
        if (self.engine is None) == (self.write_reference is None):
            raise UsageError("give --engine to check one, or --write-reference to write float32 logits")


@dataclass(frozen=True)
class Span:
    """Best span of a window: tokens of the context, first and last; margin: how much it scores above any other."""

    first: int
    last: int
    margin: float


@dataclass
class Found:
    """What the batches have shown so far."""

    batches: int = 0
    sequences: int = 0
    tokens: int = 0
    largest_to_alone: float = 0.0
    largest_to_reference: float = 0.0
    clear: int = 0  # windows whose float32 margin exceeds twice the tolerance
    clear_disagree: int = 0
    close_disagree: int = 0
    cases: list[dict] = field(default_factory=list)  # the largest differences, and every clear disagreement


def main(config: CheckConfig) -> dict:
    begin = time.monotonic()
    checkpoint = checkpoints.read(config.run)
    questions = Questions.read(checkpoint, config.dev, config.limit)
    features: Any = questions.features
    print(f"{len(questions.dataset.examples)} questions, {len(features)} windows", flush=True)
    if config.write_reference:
        logits = runners.Keras(checkpoint).logits(features)
        size = reference_file.write(Path(config.write_reference), logits, questions)
        return {"out": config.write_reference, "metrics": {"windows": len(features), "bytes": size}}
    assert config.engine is not None
    with Session.open(config.engine, config.runtime) as session:
        print(f"runtime: {session.why}", flush=True)
        reference, source = reference_file.find(config.reference, config.engine, questions)
        print(f"reference: {source}, {time.monotonic() - begin:.1f} s so far", flush=True)
        near, far = tolerances(config, session, checkpoint.config.gelu)
        whole = compare(questions, runners.session_logits(session, features, "scores"), reference)
        f1 = whole.figures["f1"]
        print(table(whole, len(questions.dataset.examples), len(features)), flush=True)
        alone = windows_alone(session, features)
        print(f"each window alone: {time.monotonic() - begin:.1f} s so far", flush=True)
        apart = max(largest(alone[side][row], reference[side][row]) for row in range(len(features)) for side in (0, 1))
        most = checkpoint.info.max_answer_tokens
        found = check_batches(config, session, features, alone, reference, far, most)
        notes = session.notes
    said = complaints(config, f1.engine - f1.checkpoint, apart, found, near, far)
    report = {
        "engine": Path(config.engine).name, "runtime": session.why, "device": session.device, "reference": source,
        "dev": Path(config.dev).name, "questions": len(questions.dataset.examples), "windows": len(features),
        "tolerance": {"to_alone": near, "to_reference": far, "f1": config.tolerance_f1}, "scores": whole.report(),
        "alone_to_reference": apart, "batches": asdict(found), "notes": notes, "complaints": said,
        "seconds": round(time.monotonic() - begin, 1), "versions": command.versions(),
        "date": datetime.date.today().isoformat(),
    }  # fmt: skip
    out = Path(config.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(command.plain(report), indent=1) + "\n", encoding="utf-8")
    print(
        f"batches: {found.batches} of {found.sequences} windows, {found.tokens} tokens in all\n"
        f"  logits differ from those of windows alone by at most {found.largest_to_alone:.3g} (tolerance {near:g})\n"
        f"  from float32 by at most {found.largest_to_reference:.3g} (tolerance {far:g}); windows alone {apart:.3g}\n"
        f"  best spans: {found.clear_disagree} of {found.clear} beyond the margin are others, and "
        f"{found.close_disagree} of the {found.sequences - found.clear} within it"
    )
    if said:
        raise UserError(f"{'; '.join(said)}; {out} says more")
    kept = ("batches", "sequences", "largest_to_alone", "largest_to_reference", "clear_disagree", "close_disagree")
    metrics = {"f1": f1.engine, "f1_reference": f1.checkpoint} | {name: getattr(found, name) for name in kept}
    return {"out": config.out, "metrics": metrics}


def tolerances(config: CheckConfig, session: Session, gelu: str) -> tuple[float, float]:
    """Largest difference of a logit: (to the window alone in the same precision, to float32)."""
    precision = session.manifest.precision if session.runtime == "tensorrt" else "float32"
    near = config.tolerance or LOGITS[precision]
    stated = json.loads((session.manifest.folder / manifests.NAME).read_bytes()).get("gelu", gelu)
    return near, near if config.tolerance or stated == gelu else max(near, ANOTHER_GELU)


def pipelined(
    session: Session, batches: Iterable[tuple[np.ndarray, Packed]]
) -> Iterator[tuple[np.ndarray, Packed, Pair]]:
    """(rows, batch, its logits), in order; further batches are under way while one is looked at."""
    ahead, batches = itertools.tee(batches)
    for (rows, batch), logits in zip(batches, session.stream(batch for _, batch in ahead), strict=True):
        yield rows, batch, logits


def windows_alone(session: Session, features: Features) -> Logits:
    """Logits of every window in a batch of its own."""
    start, end = [], []
    alone = ((np.array([row]), Packed.windows(features, np.array([row]))) for row in range(len(features)))
    for _, _, logits in tqdm(pipelined(session, alone), "alone", len(features), leave=False, mininterval=1.0):
        start.append(logits[0])
        end.append(logits[1])
    return start, end


def random_rows(features: Features, session: Session, random: np.random.Generator) -> np.ndarray:
    """The windows of a batch, within the engine's profile: in half of all batches drawn from all alike, in the other
    half so that short and long ones are as frequent as those between."""
    profile, length = session.manifest.profile, features.length
    count = int(random.integers(1, min(profile.batch.most, len(features)) + 1))
    if random.random() < 0.5:
        rows = random.choice(len(features), count, replace=False)
    else:
        order = np.argsort(length, kind="stable")
        wanted = random.uniform(length.min(), length.max(), count)
        rows = np.unique(order[np.minimum(np.searchsorted(length[order], wanted), len(order) - 1)])
        random.shuffle(rows)
    if profile.tokens:
        rows = rows[: max(1, int(np.searchsorted(np.cumsum(length[rows]), profile.tokens.most, side="right")))]
    return rows


def check_batches(
    config: CheckConfig, session: Session, features: Features, alone: Logits, reference: Logits, tolerance: float,
    most_tokens: int,
) -> Found:  # fmt: skip
    """Random batches for as long as --minutes allows."""
    random, end, found = np.random.default_rng(config.seed), time.monotonic() + 60 * config.minutes, Found()
    shift = features.query_length() + 2  # where the context begins in a window

    def span(row: int, start: np.ndarray, stop: np.ndarray) -> Span:
        context = slice(shift[row], shift[row] + features.count[row])
        return best_span(start[context], stop[context], most_tokens)

    expected = [span(row, reference[0][row], reference[1][row]) for row in range(len(features))]

    def draw() -> Iterator[tuple[np.ndarray, Packed]]:
        for _ in range(config.batches):
            if time.monotonic() > end:
                return
            rows = random_rows(features, session, random)
            yield rows, Packed.windows(features, rows)

    stream = tqdm(pipelined(session, draw()), "batches", config.batches, leave=False, mininterval=1.0)
    for number, (rows, batch, logits) in enumerate(stream):
        found.batches, found.sequences = number + 1, found.sequences + len(rows)
        found.tokens += batch.tokens
        parts = (np.split(side, batch.cu_seqlens[1:-1]) for side in logits)
        for row, start, stop in zip(rows.tolist(), *parts, strict=True):
            to_alone, to_reference = (
                max(largest(start, other[0][row]), largest(stop, other[1][row])) for other in (alone, reference)
            )
            found.largest_to_alone = max(found.largest_to_alone, to_alone)
            found.largest_to_reference = max(found.largest_to_reference, to_reference)
            ours, theirs = span(row, start, stop), expected[row]
            clear, other = theirs.margin > 2 * tolerance, (ours.first, ours.last) != (theirs.first, theirs.last)
            found.clear += clear
            found.clear_disagree += clear and other
            found.close_disagree += other and not clear
            case = {
                "batch": number, "window": row, "question": features.examples[features.example[row]],
                "tokens": int(features.length[row]), "batch_windows": len(rows), "batch_tokens": batch.tokens,
                "to_alone": to_alone, "to_reference": to_reference, "margin": theirs.margin,
                "disagrees": clear and other,
            }  # fmt: skip
            found.cases.append(case)
            if len(found.cases) > 4 * WORST:
                found.cases = worst(found.cases)
    found.cases = worst(found.cases)
    return found


def best_span(start: np.ndarray, end: np.ndarray, most_tokens: int) -> Span:
    """The best span of 1 to `most_tokens` tokens from the logits of a window's context, [n] each; NaN never wins."""
    if not len(start):
        return Span(0, 0, 0.0)
    start, end = (np.nan_to_num(side.astype(np.float64), nan=-1e8, posinf=1e8, neginf=-1e8) for side in (start, end))
    ends = np.concatenate([end, np.full(most_tokens, -np.inf)])
    scores = (start[:, None] + np.lib.stride_tricks.sliding_window_view(ends, most_tokens)[: len(start)]).reshape(-1)
    best = int(np.argmax(scores))
    others = np.delete(scores, best)
    first, length = divmod(best, most_tokens)
    return Span(first, first + length, float(scores[best] - others.max()) if len(others) else np.inf)


def largest(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference of two rows of logits; inf where one is not finite."""
    return float(np.nan_to_num(np.abs(ours.astype(np.float64) - theirs), nan=np.inf).max(initial=0.0))


def worst(cases: list[dict]) -> list[dict]:
    """Those that disagree, and those furthest from the window alone and from float32: WORST of each."""
    kept: dict[tuple, dict] = {}
    for name in ("disagrees", "to_alone", "to_reference"):
        some = [case for case in cases if case[name]]
        kept |= {(c["batch"], c["window"]): c for c in sorted(some, key=lambda c: -c[name])[:WORST]}
    return list(kept.values())


def complaints(config: CheckConfig, gained: float, apart: float, found: Found, near: float, far: float) -> list[str]:
    """What is beyond the tolerances. gained: points of F1; apart: largest difference of a window alone to float32."""
    said = []
    if not gained >= -config.tolerance_f1:
        said.append(f"F1 is {-gained:.3g} points below float32 (tolerance {config.tolerance_f1:g})")
    for title, value, bound in (
        ("windows alone differ from float32", apart, far),
        ("batches differ from float32", found.largest_to_reference, far),
        ("batches differ from windows alone", found.largest_to_alone, near),
    ):  # fmt: skip
        if not value <= bound:
            said.append(f"{title} by {value:.3g} (tolerance {bound:g})")
    if found.clear_disagree:
        said.append(f"{found.clear_disagree} of {found.clear} clear best spans are others in a batch")
    if found.batches < config.batches:
        said.append(f"only {found.batches} of {config.batches} batches in {config.minutes:g} minutes")
    return said


if __name__ == "__main__":
    command.run("scripts.check_engine", CheckConfig, main)

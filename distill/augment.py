"""More training text from the same labels: copies of every example with some words exchanged (TinyBERT, algorithm 1).

    python -m distill.augment --data train-v1.1.json.gz --model runs/teacher --out augmented.json.gz --copies 5
    python -m distill.augment --task csv --data mails.csv --text-column body --model minilm-l6 --out more.csv

The originals come first. Of two texts one is varied at a time, each from its original row; entities stay. How, is in
`distill/augment_questions.py` and `augment_rows.py`; which of them, a task's head says.
"""

from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

import heads
from configs import command
from configs.errors import UsageError, UserError
from data.tokenize import Tokenizer
from distill import augment_rows, out_file
from distill.augment_config import AugmentConfig
from distill.candidates import candidates_for
from model import weights


def main(config: AugmentConfig) -> dict:
    """Augment as told; returns {"out", "metrics"}."""
    import train.environment  # noqa: F401 - before TensorFlow, which only some of what follows needs

    head, out = heads.of_flags(config), Path(config.out)
    if not head.writes:
        raise UsageError(f"--task {head.task} has no labelled examples to vary; name the task that is trained")
    kind = out_file.check_out(out, head.writes, config.overwrite, inputs=(config.data, config.vocab))
    alone = {} if config.parts == "both" else {"parts": config.parts}
    if alone and config.parts not in head.parts:
        raise UsageError(f"--parts {config.parts}: an example of --task {head.task} has no such part; leave it out")
    folder = config.model
    if folder == "minilm-l6":
        from scripts.fetch_weights import minilm_folder

        folder = str(minilm_folder())

    published = weights.load(folder)
    vocab = Path(config.vocab) if config.vocab else published.folder / "vocab.txt"
    if not vocab.is_file():
        raise UserError(f"no vocabulary at {vocab}; name one with --vocab FILE")
    tokenizer = Tokenizer.from_config(published.tokenizer, vocab)
    candidates = candidates_for(
        published, tokenizer, config.kind, dtype=_policy(config.amp), batch_size=config.batch_size
    )
    print(f"candidates: {candidates.kind} ({candidates.reason})")
    dataset = head.read(config.data, limit=config.limit)
    with tqdm(desc="look up", unit="word", leave=False, mininterval=1.0) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        larger, report = head.augment(
            augment_rows, dataset, candidates, copies=config.copies, probability=config.probability, most=config.most,
            seed=config.seed, progress=progress, **alone,
        )  # fmt: skip
    out_file.write(head.file(larger, kind), out)
    print(
        f"{report.examples} examples and {report.copies} copies in {out}; left out: {report.same} equal to another, "
        f"{report.lost} whose answers or tags fit no more; {report.exchanged} words exchanged in {report.texts} texts"
    )
    return {"out": str(out), "metrics": asdict(report)}


def _policy(amp: str | None) -> str:
    """Keras policy of --amp."""
    if amp is None:
        return "float32"
    import tensorflow as tf

    from train import precision

    return precision.choose(amp, bool(tf.config.list_physical_devices("GPU"))).policy


if __name__ == "__main__":
    command.run("distill.augment", AugmentConfig, main)

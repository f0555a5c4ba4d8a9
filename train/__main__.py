"""`python train.py`: settings -> a job -> the loop -> a run folder."""

import shutil
from pathlib import Path

from configs import command
from model import run_folder
from train import hardware, loop
from train.config import TrainConfig
from train.out_folder import check_out, empty
from train.prepare import prepare


@hardware.memory_told()
def main(config: TrainConfig) -> dict:
    """Fine-tune as told; returns {"out", "metrics"}."""
    machine = hardware.prepare(config.device, config.distribute, config.deterministic, config.seed)
    out = Path(config.out)
    if machine.chief:  # another worker may look when the chief has begun to write
        check_out(out, config)
    prepared = prepare(config, machine, print if machine.chief else lambda *words: None)
    job = prepared.job(config)
    if machine.chief and not config.resume:
        empty(out)  # as late as this: a mistake in the other settings must not cost the run that is there
        run_folder.write(out, job.info)
        shutil.copyfile(prepared.tokenizer.vocab_file, out / "vocab.txt")
    metrics = loop.run(job, resume=config.resume)
    evaluated = {"evaluated_shapes": len(prepared.evaluate.shapes) if prepared.evaluate else 0}
    return {"out": str(out), "metrics": metrics | prepared.step.summary() | evaluated}


if __name__ == "__main__":
    command.run("train", TrainConfig, main)

"""`python distill.py`: settings -> stages, one after the other through the loop -> a student's run folder."""

import shutil
from pathlib import Path

from configs import command
from distill.config import DistillConfig
from distill.prepare import Prepared, prepare
from distill.stages import run
from model import run_folder
from train import hardware
from train.out_folder import check_out, empty


@hardware.memory_told()
def main(config: DistillConfig) -> dict:
    """Distil as told; returns {"out", "metrics"}."""
    machine = hardware.prepare(config.device, config.distribute, config.deterministic, config.seed)
    out = Path(config.out)
    if machine.chief:  # another worker may look when the chief has begun to write
        check_out(out, config)
    prepared = prepare(config, machine, print if machine.chief else lambda *words: None)
    prepared.restart(config)
    if machine.chief and not config.resume:
        begin(out, prepared, config)  # as late as this: a mistake in the settings must not cost the run that is there
    metrics = run(prepared, config, resume=config.resume)
    return {"out": str(out), "metrics": metrics}


def begin(out: Path, prepared: Prepared, config: DistillConfig) -> None:
    """An empty run folder that says what it will be."""
    empty(out)
    run_folder.write(out, prepared.job(prepared.stages[0], config).info)
    shutil.copyfile(prepared.teacher.tokenizer.vocab_file, out / "vocab.txt")


if __name__ == "__main__":
    command.run("distill", DistillConfig, main)

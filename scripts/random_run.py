"""A run folder of any size with random weights, for measuring speed where no trained model of that size is at hand.

    python -m scripts.random_run --size bert-large --out runs/large
    python export.py --run runs/large --out engines/large --no-verify --max-batch 512 --max-tokens 46080
    python -m serve.bench --engine engines/large --data dev-v1.1.json.gz

The limits let a batch hold some 250 windows of usual length. 8-bit products want data to calibrate with, and
`--quantisation-error 1`, since random weights are no measure of what a trained model bears. Its answers mean nothing;
its times are those of a trained model, whose work does not depend on what the weights are.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from configs import command
from configs.errors import UsageError, UserError
from configs.options import setting
from heads import default
from model import run_folder, weights
from model.config import NAMED
from scripts.fetch_weights import minilm_folder


@dataclass(frozen=True)
class RandomConfig:
    """Write a run folder with random weights.

    Example:

      python -m scripts.random_run --size bert-large --out runs/large
    """

    size: str = setting(required=True, help=f"one of {', '.join(NAMED)}")
    vocab: str | None = setting(None, help="vocab.txt, whose lines are the vocabulary; none: all-MiniLM-L6-v2's")
    out: str = setting(required=True, help="run folder to write; must not exist")
    window: int = setting(384, least=16, most=512, help="tokens a window")
    stride: int = setting(128, least=1, help="tokens from one window to the next")
    query: int = setting(64, least=1, help="tokens of a question, at most")
    gelu: str | None = setting(None, choices=("erf", "tanh"), help="another form of GELU than the size's own")
    seed: int = setting(0, least=0, help="of the weights")

    def __post_init__(self):
        if self.size not in NAMED:
            raise UsageError(f"--size: {self.size!r} is not known; there are {', '.join(NAMED)}")


def main(config: RandomConfig) -> dict:
    out = Path(config.out)
    if out.exists():
        raise UserError(f"{out} is there already; take another --out")
    vocabulary = Path(config.vocab) if config.vocab else minilm_folder() / "vocab.txt"
    pieces = len(vocabulary.read_text(encoding="utf-8").splitlines())
    sizes = replace(NAMED[config.size], vocabulary=pieces, gelu=config.gelu or NAMED[config.size].gelu)
    random = np.random.default_rng(config.seed)
    tensors = {}
    for name, shape in weights.expected_shapes(sizes, default()).items():
        scale = np.float32(shape[0] ** -0.5 if name.endswith(".kernel") else 0.1)  # activations of order 1
        tensors[name] = random.standard_normal(shape, np.float32) * scale + np.float32(name.endswith(".scale"))
    (out / "best").mkdir(parents=True)
    save_file(tensors, out / "best" / weights.MODEL_FILE)
    (out / "vocab.txt").write_bytes(vocabulary.read_bytes())
    tokenizer = {"lowercase": True, "strip_accents": None, "chinese": True}
    info = run_folder.RunInfo(
        sizes.to_dict(), tokenizer, config.window, config.stride, config.query, max_answer_tokens=30
    )
    run_folder.write(out, info)
    return {"out": config.out, "metrics": {"parameters": sum(array.size for array in tensors.values())}}


if __name__ == "__main__":
    command.run("scripts.random_run", RandomConfig, main)

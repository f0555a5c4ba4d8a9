"""Sizes of an encoder, and those that have a name. No TensorFlow here: export and serve read it, too."""

from dataclasses import asdict, dataclass, replace

from configs.errors import UserError


@dataclass(frozen=True)
class BertConfig:
    """Sizes and constants of an encoder. Field names are the run folder's (`config.json`, key "model")."""

    vocabulary: int = 30522
    hidden: int = 768  # H
    layers: int = 12  # L
    heads: int = 12  # N
    ffn: int = 3072  # I
    positions: int = 512
    segments: int = 2
    gelu: str = "erf"  # "erf" (exact; Hugging Face) or "tanh" (google-research/bert)
    layer_norm_epsilon: float = 1e-12
    dropout: float = 0.1  # after embeddings and after both outputs of a layer
    attention_dropout: float = 0.1  # on attention probabilities

    def __post_init__(self):
        for name in ("vocabulary", "hidden", "layers", "heads", "ffn", "positions", "segments"):
            size = getattr(self, name)
            if not isinstance(size, int) or size < 1:
                raise UserError(f"model size {name!r} is {size!r}; needed is a whole number above 0")
        for name in ("layer_norm_epsilon", "dropout", "attention_dropout"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 <= value < 1:
                raise UserError(f"model constant {name!r} is {value!r}; needed is a number from 0 to below 1")
        if self.hidden % self.heads:
            choices = ", ".join(str(n) for n in range(1, 65) if self.hidden % n == 0)
            raise UserError(f"width {self.hidden} cannot be split over {self.heads} heads; choose one of {choices}")
        if self.gelu not in ("erf", "tanh"):
            raise UserError(f"activation {self.gelu!r} is not known; needed is 'erf' (exact GELU) or 'tanh'")

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads

    def to_dict(self) -> dict:
        return asdict(self)


_GOOGLE = BertConfig(gelu="tanh")
NAMED = {  # the sizes of google-research/bert (Turc et al. 2019, arXiv 1908.08962) and of MiniLM (arXiv 2002.10957)
    "bert-tiny": replace(_GOOGLE, hidden=128, layers=2, heads=2, ffn=512),
    "bert-mini": replace(_GOOGLE, hidden=256, layers=4, heads=4, ffn=1024),
    "bert-small": replace(_GOOGLE, hidden=512, layers=4, heads=8, ffn=2048),
    "bert-medium": replace(_GOOGLE, hidden=512, layers=8, heads=8, ffn=2048),
    "bert-base": _GOOGLE,
    "bert-large": replace(_GOOGLE, hidden=1024, layers=24, heads=16, ffn=4096),
    "minilm-l6": BertConfig(hidden=384, layers=6, heads=12, ffn=1536),
}

"""What transformers' BertModel computes, kept as golden files for tests/test_bert.py. Needed again only for new cases.

    python3 -m venv /tmp/reference
    /tmp/reference/bin/pip install torch==2.13.0 transformers==5.23.0
    /tmp/reference/bin/python -m scripts.make_golden ~/.cache/retort/all-minilm-l6-v2

torch and transformers are no dependencies of Retort, hence an environment of their own; numpy and safetensors come with
them. The argument is the folder that `python -m scripts.fetch_weights` fetched. Written are

    tests/golden/bert_random.json   encoders of `CASES`, drawn here: the tests draw the same ones, and need no network
    tests/golden/bert_minilm.json   the published weights on real text, with a drawn span head

Of every tensor only a part is kept, see `sample`.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

GOLDEN = Path(__file__).parent.parent / "tests" / "golden"
SEED = 20
KEPT = 64  # about so many numbers of each tensor
SIZES = {
    "model_type": "bert", "vocab_size": 60, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "intermediate_size": 80, "max_position_embeddings": 32, "type_vocab_size": 2,
}  # fmt: skip
CASES = {  # what a checkpoint can ask for: its config.json beside SIZES
    "erf": {"hidden_act": "gelu", "layer_norm_eps": 1e-12},
    "tanh": {"hidden_act": "gelu_new", "layer_norm_eps": 1e-3},  # an epsilon large enough to be seen in the output
}
LENGTHS, PADDED = (24, 17, 1), 24
TEXTS = [  # of different lengths; accents, a long word and punctuation for the tokeniser
    ("Who designed the bridge?", "The stone bridge at Llanrwst, often ascribed to Inigo Jones, was finished in 1636; a "
     "plaque beside the café on its far bank says so, although no document of the time mentions him."),
    ("When did the observatory open?", "Naïve visitors expect a dome. The observatory, opened in May 1874, has none."),
    ("Why?", "Counterintuitively, because it rains."),
]  # fmt: skip


def uniform(shape, deviation: float, mean: float, stream: int) -> np.ndarray:
    """Uniform float32 numbers made from PCG64's raw output, which numpy promises never to change."""
    raw = np.random.PCG64([SEED, stream]).random_raw(int(np.prod(shape)))
    unit = (raw >> np.uint64(11)) / 2.0**53 * 2 - 1
    return (mean + deviation * np.sqrt(3) * unit).astype(np.float32).reshape(shape)


def random_tensors(sizes: dict = SIZES) -> dict[str, np.ndarray]:
    """Weights of an encoder under Hugging Face's names, with pooler and span head.

    They are far larger than a fresh model's, so that attention is uneven and a mistake anywhere reaches the output.
    """
    wide, inner = sizes["hidden_size"], sizes["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {}
    rows = {"word": "vocab_size", "position": "max_position_embeddings", "token_type": "type_vocab_size"}
    for name, count in rows.items():
        shapes[f"embeddings.{name}_embeddings.weight"] = (sizes[count], wide)
    shapes["embeddings.LayerNorm.weight"] = shapes["embeddings.LayerNorm.bias"] = (wide,)
    for layer in range(sizes["num_hidden_layers"]):
        stem = f"encoder.layer.{layer}"
        dense = {f"attention.self.{name}": (wide, wide) for name in ("query", "key", "value")}
        dense |= {"attention.output.dense": (wide, wide)}
        dense |= {"intermediate.dense": (inner, wide), "output.dense": (wide, inner)}
        for name, shape in dense.items():
            shapes |= {f"{stem}.{name}.weight": shape, f"{stem}.{name}.bias": shape[:1]}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{stem}.{name}.weight": (wide,), f"{stem}.{name}.bias": (wide,)}
    shapes |= {"pooler.dense.weight": (wide, wide), "pooler.dense.bias": (wide,)}
    shapes |= {"qa_outputs.weight": (2, wide), "qa_outputs.bias": (2,)}
    tensors = {}
    for stream, (name, shape) in enumerate(shapes.items()):
        mean = 1.0 if name.endswith("LayerNorm.weight") else 0.0
        tensors[name] = uniform(shape, 0.25, mean, stream)
    return tensors


def write_folder(folder: Path, config: dict, tensors: dict[str, np.ndarray]) -> Path:
    """A folder as Hugging Face's libraries write it, without a vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, folder / "model.safetensors")
    return folder


def random_batch() -> dict[str, np.ndarray]:
    """token_ids, segment_ids, padding_mask int32 [3, PADDED]; segments change halfway through a row."""
    place = np.arange(PADDED)[None, :]
    lengths = np.array(LENGTHS)[:, None]
    mask = place < lengths
    ids = 1 + (place * 7 + lengths * 5) % (SIZES["vocab_size"] - 1)
    batch = {"token_ids": ids * mask, "segment_ids": (place >= lengths // 2) & mask, "padding_mask": mask}
    return {name: value.astype(np.int32) for name, value in batch.items()}


def head(wide: int) -> dict[str, np.ndarray]:
    """A span head for an encoder that has none, under Hugging Face's names."""
    return {"qa_outputs.weight": uniform((2, wide), 0.25, 0, 1000), "qa_outputs.bias": uniform((2,), 0.25, 0, 1001)}


def sample(x, padding_mask) -> np.ndarray:
    """About KEPT numbers of [B, S], [B, S, H] or [B, N, S, S], spread over real tokens (queries and keys): float64."""
    x, real = np.asarray(x, np.float64), np.asarray(padding_mask, bool)
    if x.ndim == 4:
        real = real[:, None, :, None] & real[:, None, None, :] & np.ones((1, x.shape[1], 1, 1), bool)
    x = x[real].ravel()
    step = max(1, x.size // KEPT)
    return x[:: step + 1 - step % 2]  # odd steps do not stay in one column


def reference(folder: Path, batch: dict, qa: dict) -> dict[str, list[float]]:
    """Samples of everything that our encoder can return, by transformers in float32."""
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import BertForQuestionAnswering  # pyright: ignore[reportMissingImports]

    model = BertForQuestionAnswering.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.no_grad():
        model.qa_outputs.weight.copy_(torch.from_numpy(qa["qa_outputs.weight"]))
        model.qa_outputs.bias.copy_(torch.from_numpy(qa["qa_outputs.bias"]))
        names = ("token_ids", "segment_ids", "padding_mask")
        ids, segments, mask = (torch.from_numpy(batch[name]).long() for name in names)
        out = model(input_ids=ids, token_type_ids=segments, attention_mask=mask, output_hidden_states=True)
        tensors = {"start_logits": out.start_logits, "end_logits": out.end_logits}
        tensors |= {f"hidden.{index}": hidden for index, hidden in enumerate(out.hidden_states)}
        for index, layer in enumerate(model.bert.encoder.layer):
            attention, x = layer.attention.self, out.hidden_states[index]
            rows, size = x.shape[:2], attention.attention_head_size
            three = (attention.query, attention.key, attention.value)
            query, key, value = (dense(x).view(*rows, -1, size) for dense in three)  # [B, S, N, D]
            tensors[f"scores.{index}"] = torch.einsum("bqnd,bknd->bnqk", query, key) / size**0.5  # [B, N, S, S]
            tensors[f"value.{index}"] = value.flatten(2)
    samples = {name: sample(tensor, batch["padding_mask"]) for name, tensor in tensors.items()}
    return {name: [float(f"{x:.8g}") for x in values] for name, values in samples.items()}


def main(minilm: Path) -> None:
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    made = {"by": "python -m scripts.make_golden", "torch": torch.__version__, "transformers": transformers.__version__}
    tensors, batch = random_tensors(), random_batch()
    cases = {}
    for name, config in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            write_folder(Path(folder), SIZES | config, tensors)
            cases[name] = reference(Path(folder), batch, tensors)
    _write("bert_random.json", {"made": made, "cases": cases})

    tokenizer = transformers.BertTokenizerFast(str(minilm / "vocab.txt"))
    questions, contexts = zip(*TEXTS, strict=True)
    coded = tokenizer(list(questions), list(contexts), padding=True, return_tensors="np")
    names = {"token_ids": "input_ids", "segment_ids": "token_type_ids", "padding_mask": "attention_mask"}
    batch = {ours: coded[theirs].astype(np.int32) for ours, theirs in names.items()}
    wide = json.loads((minilm / "config.json").read_text())["hidden_size"]
    stored = {name: value.tolist() for name, value in batch.items()}
    _write("bert_minilm.json", {"made": made, "batch": stored, "outputs": reference(minilm, batch, head(wide))})


def _write(name: str, content: dict) -> None:
    text = json.dumps(content, indent=1)
    text = "".join(line.strip() if line.lstrip()[:1] in "-0123456789]" else "\n" + line for line in text.splitlines())
    (GOLDEN / name).write_text(text.lstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]).expanduser())

"""What other libraries say, kept as golden files for tests/test_scores.py and tests/test_embed.py.

    python3 -m venv /tmp/reference
    /tmp/reference/bin/pip install torch==2.13.0 transformers==5.23.0 scikit-learn==1.9.1 scipy==1.17.1 seqeval==1.2.2
    /tmp/reference/bin/python -m scripts.make_golden_tasks ~/.cache/retort/all-minilm-l6-v2

None of them is a dependency of Retort, hence an environment of their own. The argument is the folder that `python -m
scripts.fetch_weights` fetched. Written are

    tests/golden/scores.json        columns and tags, drawn here, with their metrics by scikit-learn, scipy and seqeval
    tests/golden/embed_minilm.json  cosines of `SENTENCES` by transformers: mean over the tokens, then length 1
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent.parent / "tests" / "golden"
SENTENCES = [
    "A man is eating noodles in a small kitchen.",
    "Someone has his lunch.",
    "The committee postponed the vote until Thursday.",
    "The decision was put off by two days.",
    "Her violin was made in Cremona in 1721.",
    "Old instruments from Italy are dear.",
    "It rains.",
    "Naïve visitors expect a café beside the observatory's dome; there is none, nor has there ever been one.",
    "Where is my parcel? It should have been here last week!",
    "My delivery is late.",
    "x = 3 * (y + 2) - 7",
    "The quick brown fox jumps over the lazy dog, again and again and again, until both of them are tired of it.",
]
TAGS = ("O", "O", "O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-ORG", "I-ORG", "E-PER", "S-LOC")
AWKWARD = [  # true, said
    (["O", "I-PER", "I-PER", "O"], ["O", "B-PER", "I-PER", "O"]),  # an entity that begins with I
    (["B-PER", "B-PER", "I-PER"], ["B-PER", "I-PER", "I-PER"]),
    (["B-PER", "I-LOC", "O"], ["B-PER", "I-PER", "O"]),  # a kind that changes within
    (["B-LOC", "I-LOC"], ["B-LOC", "I-LOC"]),  # up to the last word
    (["B-PER", "E-PER", "S-LOC"], ["B-PER", "I-PER", "S-LOC"]),
    (["O", "O"], ["B-PER", "O"]),
]


def scores() -> dict:
    """Columns and what the libraries say of them."""
    from scipy import stats  # pyright: ignore[reportMissingImports]
    from seqeval import metrics as seqeval  # pyright: ignore[reportMissingImports]
    from sklearn import metrics as sklearn  # pyright: ignore[reportMissingImports]

    random = np.random.default_rng(20)
    classes, numbers, tags = [], [], []
    for kinds, rows, right in ((2, 40, 0.8), (3, 60, 0.6), (5, 30, 0.3), (2, 12, 1.0), (4, 25, 0.0)):
        true = random.integers(0, kinds, rows)
        said = np.where(random.random(rows) < right, true, random.integers(0, kinds, rows))
        classes.append({
            "true": true.tolist(), "said": said.tolist(), "accuracy": sklearn.accuracy_score(true, said),
            "f1": sklearn.f1_score(true == 1, said == 1, zero_division=0),
            "macro_f1": sklearn.f1_score(true, said, average="macro", zero_division=0),
            "matthews": sklearn.matthews_corrcoef(true, said),
        })  # fmt: skip
    for rows, ties, noise in ((30, False, 0.3), (50, True, 1.0), (8, True, 0.0), (40, False, 9.0)):
        true = random.normal(size=rows)
        said = true * 2 + random.normal(size=rows) * noise
        true, said = (np.round(column, 0 if ties else 6) for column in (true, said))
        numbers.append({
            "true": true.tolist(), "said": said.tolist(), "pearson": float(stats.pearsonr(true, said).statistic),
            "spearman": float(stats.spearmanr(true, said).statistic),
        })  # fmt: skip
    drawn = [(random.choice(TAGS, 9).tolist(), random.choice(TAGS, 9).tolist()) for _ in range(40)]
    same = [(one, one) for one, _ in drawn[:10]]
    for pairs in ([pair] for pair in AWKWARD):
        tags.append(_tagged(seqeval, pairs))
    tags += [_tagged(seqeval, drawn), _tagged(seqeval, drawn + same)]
    return {"classes": classes, "numbers": numbers, "tags": tags}


def _tagged(seqeval, pairs) -> dict:
    true, said = ([list(pair[side]) for pair in pairs] for side in (0, 1))
    found = {
        name: float(getattr(seqeval, f"{name}_score")(true, said, zero_division=0)) for name in ("precision", "recall")
    }
    return {"true": true, "said": said, **found, "f1": float(seqeval.f1_score(true, said, zero_division=0))}


def cosines(minilm: Path) -> list[list[float]]:
    """[sentences, sentences] of the mean token vectors, as the model's card has it."""
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    model = transformers.BertModel.from_pretrained(str(minilm)).eval()
    coded = transformers.BertTokenizerFast(str(minilm / "vocab.txt"))(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        x = model(**coded).last_hidden_state
    mask = coded["attention_mask"].unsqueeze(-1).float()
    vectors = torch.nn.functional.normalize((x * mask).sum(1) / mask.sum(1), dim=1)
    return [[round(float(value), 7) for value in row] for row in vectors @ vectors.T]


def main(minilm: Path) -> None:
    def made(*packages: str) -> dict[str, str]:
        return {"by": "python -m scripts.make_golden_tasks"} | {name: version(name) for name in packages}

    contents = {
        "scores.json": {"made": made("scikit-learn", "scipy", "seqeval"), **scores()},
        "embed_minilm.json": {"made": made("torch", "transformers"), "cosines": cosines(minilm)},
    }
    for name, content in contents.items():
        (GOLDEN / name).write_text(json.dumps(content) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]).expanduser())

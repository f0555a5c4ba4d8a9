"""The handwritten questions: kept in a form that is easy to write, checked and given offsets when loaded.

    {"title": "Tides", "context": "...", "qas": [["Why ...?", "answer", "another gold"], ["Unanswerable ...?"]]}

Where the answer's text occurs more than once, "answer#2" means its second occurrence.
"""

import json
import random
from pathlib import Path

FOLDER = Path(__file__).parent / "handwritten"


def offset(context: str, gold: str, where: str) -> dict:
    text, _, digits = gold.partition("#")
    times = context.count(text)
    if times == 0:
        raise ValueError(f"{where}: answer {text!r} is not in the passage")
    if times > 1 and not digits:
        raise ValueError(f"{where}: answer {text!r} occurs {times} times; say which, as in {text + '#1'!r}")
    start = -1
    for _ in range(int(digits or 1)):
        start = context.find(text, start + 1)
        if start < 0:
            raise ValueError(f"{where}: answer {text!r} occurs {times} times, number {digits} was asked for")
    return {"text": text, "answer_start": start}


def load_handwritten(count: int | None = None, seed: int = 0, version: str = "1.1") -> dict:
    """All of it in order of the files, or `count` questions drawn by `seed`; version 1.1 leaves the unanswerable out."""
    articles = [article for path in sorted(FOLDER.glob("*.json")) for article in json.loads(path.read_text(encoding="utf-8"))]
    kept = [(a, q) for a, article in enumerate(articles) for q, qa in enumerate(article["qas"])
            if version == "2.0" or len(qa) > 1]
    if count is not None:
        if count > len(kept):
            raise ValueError(f"{count} handwritten questions asked for; there are {len(kept)} in the {version} form")
        kept = sorted(random.Random(seed).sample(kept, count))
    chosen, data = set(kept), []
    for a, article in enumerate(articles):
        qas = []
        for q, (question, *golds) in enumerate(article["qas"]):
            if (a, q) not in chosen:
                continue
            qa = {"id": f"handwritten-{a:02d}-{q:02d}", "question": question,
                  "answers": [offset(article["context"], gold, f"{article['title']}: {question}") for gold in golds]}
            if version == "2.0":
                qa["is_impossible"] = not golds
            qas.append(qa)
        if qas:
            data.append({"title": article["title"], "paragraphs": [{"context": article["context"], "qas": qas}]})
    return {"version": version, "data": data}

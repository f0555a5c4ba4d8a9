"""The handwritten questions: kept in a form that is easy to write, checked and given offsets when loaded.

    {"title": "Tides", "context": "...", "qas": [["Why ...?", "answer", "another gold"], ["Unanswerable ...?"]]}

Where the answer's text occurs more than once, "answer#2" means its second occurrence.
"""

import json
import random
import re
from pathlib import Path

FOLDER = Path(__file__).parent / "handwritten"


def offset(context: str, gold: str, where: str, within: tuple[int, int] = (0, 0)) -> dict:
    """Where the gold is; `within` is the first gold's place, in which a shorter wording is looked for first."""
    text, _, digits = gold.partition("#")
    places = [found.start() for found in re.finditer(rf"(?<!\w){re.escape(text)}(?!\w)", context)]
    if not places:
        raise ValueError(f"{where}: answer {text!r} is not in the passage")
    inside = [at for at in places if within[0] <= at and at + len(text) <= within[1]]
    if digits and not 1 <= int(digits) <= len(places):
        raise ValueError(f"{where}: answer {text!r} occurs {len(places)} times, number {digits} was asked for")
    if len(places) > 1 and not digits and len(inside) != 1:
        raise ValueError(f"{where}: answer {text!r} occurs {len(places)} times; say which, as in {text + '#1'!r}")
    return {"text": text, "answer_start": places[int(digits) - 1] if digits else (inside or places)[0]}


def answers(context: str, golds: list[str], where: str) -> list[dict]:
    out: list[dict] = []
    for gold in golds:
        first = out[0] if out else {"text": "", "answer_start": 0}
        out.append(offset(context, gold, where, (first["answer_start"], first["answer_start"] + len(first["text"]))))
    return out


def load_handwritten(count: int | None = None, seed: int = 0, version: str = "1.1") -> dict:
    """All, in order of the files, or `count` questions drawn by `seed`; version 1.1 leaves the unanswerable out."""
    articles = [
        article for path in sorted(FOLDER.glob("*.json")) for article in json.loads(path.read_text(encoding="utf-8"))
    ]
    kept = [
        (a, q)
        for a, article in enumerate(articles)
        for q, qa in enumerate(article["qas"])
        if version == "2.0" or len(qa) > 1
    ]
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
            qa = {
                "id": f"handwritten-{a:02d}-{q:02d}",
                "question": question,
                "answers": answers(article["context"], golds, f"{article['title']}: {question}"),
            }
            if version == "2.0":
                qa["is_impossible"] = not golds
            qas.append(qa)
        if qas:
            data.append({"title": article["title"], "paragraphs": [{"context": article["context"], "qas": qas}]})
    return {"version": version, "data": data}

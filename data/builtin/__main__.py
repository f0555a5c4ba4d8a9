"""Writes a built-in part to a file, for looking at: `python -m data.builtin --part train --out train.json`."""

import argparse
import json
from pathlib import Path

from data.builtin import PARTS, load

parser = argparse.ArgumentParser(prog="python -m data.builtin", description=__doc__)
parser.add_argument("--part", required=True, choices=PARTS)
parser.add_argument("--out", required=True, type=Path, help="JSON file to write")
parser.add_argument("--count", type=int, help="number of questions (default: 4000 for train, 300 for dev)")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--version", default="1.1", choices=("1.1", "2.0"))
options = parser.parse_args()

made = load(options.part, count=options.count, seed=options.seed, version=options.version)
options.out.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
total = sum(len(paragraph["qas"]) for article in made["data"] for paragraph in article["paragraphs"])
print(f"{options.out}: {total} questions on {len(made['data'])} passages")

"""What walkthrough.ipynb counts and draws, so that its cells can stay short; nothing else uses it.

Drawings are HTML by hand, with half-transparent colours that suit light and dark pages alike.
"""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from safetensors.numpy import save_file

import plugins
from data import squad
from export import engine, graph
from heads import default
from model import run_folder, weights
from model.config import NAMED, BertConfig
from plugins import registration, tensorrt_flavour
from serve.manifest import Profile
from serve.reader import Reader

ARCHITECTURE = 89  # a plan needs one to be for; the layers are the same for every other
START, END, GREY, MARK = "#3b82c4", "#e08a2e", "#88888855", "#ffd00077"
VALUES = 2  # bytes of a number in float16


def untrained_run(folder: Path, texts: Sequence[str]) -> Path:
    """A run folder of 2 layers with random weights, whose vocabulary is words of `texts` and of built-in questions."""
    built_in = squad.read("builtin:dev-facts").examples
    texts = [*texts, *(part for example in built_in for part in (example.context, example.question))]
    words = sorted(set(re.findall(r"[^\W_]+", " ".join(texts).lower())))
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters), *".,:;?!'-()"]
    pieces = list(dict.fromkeys([*pieces, *words]))
    config = replace(NAMED["bert-tiny"], gelu="erf", vocabulary=len(pieces))
    random = np.random.default_rng(0)
    tensors = {
        name: (random.normal(0, 0.1, shape) + name.endswith(".scale")).astype(np.float32)
        for name, shape in weights.expected_shapes(config, default()).items()
    }
    (folder / "best").mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "best" / weights.MODEL_FILE)
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    tokenizer = {"lowercase": True, "strip_accents": None, "chinese": True}
    info = run_folder.RunInfo(config.to_dict(), tokenizer, window=192, stride=64, query=32, max_answer_tokens=30)
    run_folder.write(folder, info)
    return folder


def word_logits(reader: Reader, question: str, passage: str) -> tuple[list[str], np.ndarray]:
    """The words of a passage, and the start and end logit of each: float32 [words, 2], the highest of its pieces."""
    dataset = squad.Dataset([squad.Example("0", "", passage, question, (), True)], "2.0")
    features = reader.features(dataset)
    spans = [match.span() for match in re.finditer(r"\S+", passage)]
    firsts = [first for first, _ in spans]
    found = np.full((len(spans), 2), -np.inf, np.float32)
    for row, pair in enumerate(zip(*reader.logits(features), strict=True)):
        before, count = int(features.query_length(row)) + 2, int(features.count[row])  # [CLS] question [SEP] passage
        for place in range(count):
            word = np.searchsorted(firsts, features.context_offsets[features.first[row] + place, 0], side="right") - 1
            found[word] = np.maximum(found[word], [logits[before + place] for logits in pair])
    return [passage[first:last] for first, last in spans], found


@dataclass(frozen=True)
class Network:
    """How TensorRT read a graph with some plugins registered, and what it built."""

    layers: int  # of the network as parsed; weights, which are layers to TensorRT, are left out
    plugin_layers: dict[str, int]  # op -> those that are our plugin
    plan_bytes: int


def build(trt: Any, model: Path, config: BertConfig, names: Sequence[str], profile: Profile) -> Network:
    """Parse and build an ONNX file with the named plugins; the plan is written, measured and removed."""
    with registration.registered(trt, names):
        log = tensorrt_flavour.logger(trt)
        builder = trt.Builder(log)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, log)
        parser.parse_from_file(str(model))  # a failure is told below: `engine.build` parses again and raises
        types = [network.get_layer(index).type for index in range(network.num_layers)]
    out, plan = model.with_suffix(".plan"), engine.Plan(tuple(names), (ARCHITECTURE,), profile)
    taken = engine.build(trt, model, out, plan, graph.expected_nodes(config))  # of an engine without a plan: not fused
    size = out.stat().st_size
    out.unlink()
    return Network(sum(kind != trt.LayerType.CONSTANT for kind in types), taken, size)


def replaced(model: Path, plugin: str) -> tuple[int, int]:
    """(a plugin's nodes in an ONNX file, the standard nodes in their bodies together); constants are left out."""
    read = onnx.load(str(model), load_external_data=False)
    bodies = {body.name: sum(node.op_type != "Constant" for node in body.node) for body in read.functions}
    nodes = [bodies[node.op_type] for node in read.graph.node if plugins.OPS.get(node.op_type) == plugin]
    return len(nodes), sum(nodes)


# Results of a body's steps that a plugin keeps on the chip, by their names in function.py. Conversions and changes of
# shape are left out: any runtime does them in passing.
ON_CHIP = {
    "embed_layer_norm": ("token_rows", "position_rows", "segment_rows", "placed", "s"),  # [T, H] each
    "attention": ("scores", "weights"),  # [N, T, T] each
    "skip_layer_norm": ("with_bias", "s"),  # [T, H] each
    "gelu": (),  # one step with or without us
    "linear": ("product",),  # [T, outputs]
    "linear_gelu": ("product", "sum"),  # [T, outputs] each
}


def bytes_saved(config: BertConfig, tokens: int, plugin: str) -> int:
    """Bytes that a float16 network does not write and read again for one window of so many tokens, in all its layers.

    Every step of a body as a kernel of its own writes its result once, and the next step reads it once.
    """
    heads = 3 * config.heads * graph.padded_head_size(config)
    qkv, out, inner = tokens * heads, tokens * config.hidden, tokens * config.ffn
    tanh = config.gelu == "tanh"
    numbers = {
        "embed_layer_norm": len(ON_CHIP["embed_layer_norm"]) * out,
        "attention": config.layers * len(ON_CHIP["attention"]) * config.heads * tokens**2,
        "skip_layer_norm": config.layers * 2 * len(ON_CHIP["skip_layer_norm"]) * out,
        "gelu": 0,
        "linear": config.layers * (qkv + 2 * out + inner * len(ON_CHIP["linear_gelu" if tanh else "linear"])),
    }
    return 2 * VALUES * numbers[plugin]


def measured(plugin: str, folder: Path = Path(plugins.__file__).parent) -> list[dict[str, str]]:
    """Rows of plugins/<plugin>/results.csv: those in float16 of 32 windows of 384 tokens, or all if there are none."""
    path = folder / plugin / "results.csv"
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [row for row in rows if "32x384" in row["case"] and row["dtype"] == "float16"] or rows


def highlighted(title: str, passage: str, start: int, end: int) -> str:
    """A title, and below it a passage with the characters from `start` to before `end` marked."""
    before, marked, after = (escape(part) for part in (passage[:start], passage[start:end], passage[end:]))
    style = f"background: {MARK}; color: inherit; padding: 0 .15em; border-radius: .2em"
    mark = f'<mark style="{style}">{marked}</mark>' if marked else ""
    text = f"<b>{escape(title)}</b><br>{before}{mark}{after}"
    return f'<p style="max-width: 46em; line-height: 1.5">{text}</p>'


def bars(words: Sequence[str], logits: np.ndarray, height: int = 44) -> str:
    """Two bars over every word, as high as its start and its end logit stand above the lowest; logits [words, 2]."""
    low, high = float(logits.min()), float(logits.max())
    pixels = 1 + (height - 1) * (logits - low) / max(high - low, 1e-9)
    line = f"border-bottom: 1px solid {GREY}"
    above = f"display: flex; height: {height}px; align-items: flex-end; justify-content: center; gap: 1px; {line}"
    cells = []
    for word, pair, tall in zip(words, logits, pixels, strict=True):
        both = "".join(
            f'<span style="width: 7px; height: {one:.0f}px; background: {colour}"></span>'
            for one, colour in zip(tall, (START, END), strict=True)
        )
        title = f"start {pair[0]:.2f}, end {pair[1]:.2f}"
        place = "display: inline-block; margin: 2px 3px; text-align: center"
        cells.append(f'<span title="{title}" style="{place}"><span style="{above}">{both}</span>{escape(word)}</span>')
    key = " &nbsp; ".join(
        f'<span style="color: {colour}">&#9632;</span> {name}' for name, colour in (("start", START), ("end", END))
    )
    told = f"{key} &nbsp; logits from {low:.1f} to {high:.1f}"
    return f'<div style="max-width: 60em; font-size: 13px">{told}<br>{"".join(cells)}</div>'


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table: text from the left, columns of numbers (float: two places) and percentages from the right."""

    def line(tag: str, cells: Sequence[Any]) -> str:
        written = (f"{cell:,}" if isinstance(cell, int) else f"{cell:,.2f}" if isinstance(cell, float) else cell
                   for cell in cells)  # fmt: skip
        return "<tr>" + "".join(
            f'<{tag} style="text-align: {side}; vertical-align: top">{escape(str(cell))}</{tag}>'
            for side, cell in zip(sides, written, strict=True)
        ) + "</tr>"  # fmt: skip

    sides = ["right" if isinstance(cell, int | float) or cell.endswith("%") else "left" for cell in rows[0]]
    return f"<table>{line('th', header)}{''.join(line('td', row) for row in rows)}</table>"


def batch_picture(lengths: Sequence[int], width: int = 560) -> str:
    """A batch padded to its longest window, a row each, and the same windows packed into one row, which is wrapped."""
    longest, tall, gap = max(lengths), 10, 2
    step, scale = tall + gap, width / longest
    shapes, top = [], 14
    for length in lengths:
        shapes.append(_box(0, top, width, tall, GREY) + _box(0, top, length * scale, tall, START))
        top += step
    shapes.insert(0, _label(0, 10, f"padded: {len(lengths)} rows of {longest} tokens, grey is padding"))
    shapes.append(_label(0, top + 16, f"packed: {sum(lengths)} tokens in one row, wrapped here"))
    top += 20
    place = 0
    for index, length in enumerate(lengths):
        left = length
        while left:  # a window that crosses the right edge goes on in the next line
            here = min(left, longest - place % longest)
            x, y = place % longest * scale, top + place // longest * step
            shapes.append(_box(x, y, here * scale, tall, (START, END)[index % 2]))
            place, left = place + here, left - here
    bottom = top + -(-place // longest) * step
    return f'<svg width="{width}" height="{bottom}" xmlns="http://www.w3.org/2000/svg">{"".join(shapes)}</svg>'


def _box(x: float, y: float, wide: float, tall: float, colour: str) -> str:
    return f'<rect x="{x:.1f}" y="{y}" width="{wide:.1f}" height="{tall}" fill="{colour}"/>'


def _label(x: float, y: float, text: str) -> str:
    return f'<text x="{x}" y="{y}" font-size="12" font-family="sans-serif" fill="currentColor">{escape(text)}</text>'


def tokens_computed(lengths: Sequence[int] | np.ndarray, batch: int, window: int) -> dict[str, int]:
    """How a batch is laid out -> tokens that are computed for windows of these lengths, `batch` at a time."""
    whole = np.asarray(lengths)
    groups = [whole[first : first + batch] for first in range(0, len(whole), batch)]
    return {
        f"padded to the longest possible, {window} tokens": window * len(whole),
        f"padded to the longest of {batch}": sum(int(group.max()) * len(group) for group in groups),
        "packed": int(whole.sum()),
    }

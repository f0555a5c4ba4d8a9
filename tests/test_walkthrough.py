"""The notebook: committed empty, run from top to bottom without a trained network, and what it counts and draws."""

import html
import json
import re
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import export_kit as kit
import nbformat
import numpy as np
import onnx
import onnx.inliner
import pytest
from nbclient import NotebookClient

import plugins
from data.features import FeatureOptions, featurise
from export import checkpoint, graph
from scripts import walkthrough
from serve.packed import Packed

NOTEBOOK = Path(walkthrough.__file__).with_suffix(".ipynb")
# Plugins without a node in this engine: one would join two of the others, one is for 8 bits.
ABSENT = {"linear_skip_layer_norm", "linear8"}
# Run after the notebook's own cells, in their process.
LOOK = """
import json
from dataclasses import asdict
print(json.dumps({
    "passage": passage, "questions": questions, "answers": [asdict(answer) for answer in answers], "words": words,
    "logits": logits.tolist(), "savings": savings, "together": together.plugin_layers, "computed": computed,
    "lengths": lengths.tolist(), "difference": difference, "modules": sorted(sys.modules), "temporary": temporary.name,
}))
"""


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.fixture(scope="module")
def ran(notebook):
    """(the notebook with its outputs, its variables at the end) by an untrained network."""
    copy = deepcopy(notebook)
    copy.cells.append(nbformat.v4.new_code_cell(LOOK))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETORT_WALKTHROUGH_RUN", "untrained")
        client = NotebookClient(
            copy, timeout=100, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOK.parent)}}
        )
        client.execute()
    return copy, json.loads(copy.cells.pop().outputs[0].text)


def shown(ran) -> str:
    """All that the cells put out, as one text."""
    outputs = [output for cell in ran[0].cells for output in cell.get("outputs", [])]
    return "\n".join(output.get("text") or output.get("data", {}).get("text/html", "") for output in outputs)


def test_it_is_committed_without_outputs_counts_or_places(notebook):
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [(cell.outputs, cell.execution_count) for cell in code] == [([], None)] * len(code)
    assert [cell.id for cell in code if cell.metadata] == []
    assert re.findall(r"/(?:home|root|work|tmp|Users|usr)\b", NOTEBOOK.read_text(encoding="utf-8")) == []
    assert set(notebook.metadata) == {"kernelspec", "language_info"}


def test_it_runs_without_errors_or_warnings_and_leaves_nothing(ran):
    outputs = [output for cell in ran[0].cells for output in cell.get("outputs", [])]
    assert [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"] == []
    assert "this network has random weights, its answers mean nothing" in shown(ran)
    assert not {"tensorflow", "keras", "torch"} & set(ran[1]["modules"])
    assert not Path(ran[1]["temporary"]).exists()


def test_every_question_has_an_answer_that_is_a_marked_slice_of_the_passage(ran):
    seen = ran[1]
    marked = re.findall(r"<mark[^>]*>(.*?)</mark>", shown(ran), flags=re.DOTALL)
    slices = [seen["passage"][answer["start"] : answer["end"]] for answer in seen["answers"]]
    assert [answer["text"] for answer in seen["answers"]] == slices
    assert [html.unescape(text) for text in marked] == slices
    assert len(slices) == len(seen["questions"])
    assert all(slices)


def test_every_word_of_the_passage_has_two_logits(ran):
    seen = ran[1]
    assert seen["words"] == seen["passage"].split()
    logits = np.array(seen["logits"])
    assert logits.shape == (len(seen["words"]), 2)
    assert np.isfinite(logits).all()
    assert len(np.unique(logits)) > len(logits)


def test_the_plugin_table_counts_nodes_steps_layers_and_bytes(ran):
    rows = {name: numbers for name, _, *numbers in ran[1]["savings"]}
    used = [name for name in plugins.PLUGINS if name not in ABSENT]
    assert list(rows) == ["none", *used, "all"]
    assert {name: row[0] for name, row in rows.items() if name in plugins.PLUGINS} == {
        "embed_layer_norm": 1, "attention": 2, "skip_layer_norm": 4, "gelu": 2, "linear": 8,
    }  # fmt: skip
    assert (rows["skip_layer_norm"][1], rows["gelu"][1], rows["linear"][1]) == (4 * 7, 2 * 3, 8 * 2)
    body = plugins.function("attention", onnx.TensorProto.FLOAT16, layout="packed").node
    assert rows["attention"][1] == 2 * (len(body) - [node.op_type for node in body].count("Constant"))
    layers = {name: row[2] for name, row in rows.items()}
    assert all(layers["all"] < layers[name] < layers["none"] for name in used)
    assert layers["none"] - layers["attention"] > layers["none"] - layers["gelu"] > 0
    tokens, width = 192, 128  # of the untrained network, with 2 layers, 2 heads and 512 inside the feed-forward part
    traffic = {
        "embed_layer_norm": 5 * width, "attention": 2 * 2 * 2 * tokens, "skip_layer_norm": 2 * 2 * 2 * width,
        "gelu": 0, "linear": 2 * (3 * width + width + 512 + width),
    }  # fmt: skip
    expected = {name: 4 * tokens * numbers / 2**20 for name, numbers in traffic.items()}
    assert {name: rows[name][3] for name in used} == pytest.approx(expected)
    assert rows["all"][0] == 17 == sum(ran[1]["together"].values())
    assert rows["all"][3] == pytest.approx(sum(expected.values()))
    assert f"{layers['none']:,}</td>" in shown(ran)


def test_a_plugin_without_results_is_said_to_be_unmeasured(ran):
    unmeasured = {name for name in plugins.PLUGINS if f"\n{name}: not measured yet" in "\n" + shown(ran)}
    results = NOTEBOOK.parent.parent.glob("plugins/*/results.csv")
    assert unmeasured == set(plugins.PLUGINS) - ABSENT - {path.parent.name for path in results}


def test_packing_leaves_out_the_padding_and_nothing_else(ran):
    longest, padded, packed = ran[1]["computed"].values()
    assert packed == sum(ran[1]["lengths"]) < padded < longest == 192 * len(ran[1]["lengths"])
    assert f"{100 * (1 - packed / padded):.1f} %" in shown(ran)
    assert 0 < ran[1]["difference"] < 1e-4


@pytest.mark.parametrize("gelu", ["erf", "tanh"])
def test_the_bytes_saved_are_those_of_the_bodies_when_they_are_run(gelu):
    config = replace(kit.SIZES, gelu=gelu)
    model = onnx.inliner.inline_local_functions(
        graph.build(kit.tensors(config), config, precision="float16", layout="packed")
    )
    names = {name for kept in walkthrough.ON_CHIP.values() for name in kept}
    values = [value for node in model.graph.node for value in node.output if re.sub(r"__\d+$", "", value) in names]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=value) for value in values)
    sequence = Packed.of([np.arange(9)], [np.zeros(9)])
    inputs = kit.packed_inputs(sequence, tail=0)
    sizes = dict(zip(values, (4 * array.size for array in kit.compute(model, inputs)), strict=True))
    parts = [name for name in plugins.PLUGINS if name not in ABSENT]
    saved = {name: walkthrough.bytes_saved(config, 9, name) for name in parts}
    assert sum(saved.values()) == sum(sizes.values())
    for plugin, ops in (("attention", "scores weights"), ("linear", "product sum")):
        assert saved[plugin] == sum(size for name, size in sizes.items() if name.split("__")[0] in ops.split())
    assert saved["gelu"] == 0 < saved["attention"]


def test_words_take_the_highest_logit_of_their_pieces_over_all_windows(tmp_path):
    run = walkthrough.untrained_run(tmp_path / "run", ["apple"])
    assert checkpoint.read(run).config.layers == 2
    passage = "xyz-q apple " * 80

    class Reader:
        """Gives the n-th token of a window the start logit n, and the end logit -n."""

        def features(self, dataset):
            self.made = featurise(dataset, checkpoint.read(run).tokenizer, FeatureOptions(64, 32, 8))
            return self.made

        def logits(self, features):
            rows = [np.arange(length, dtype=np.float32) for length in features.length]
            return rows, [-row for row in rows]

    reader: Any = Reader()
    words, logits = walkthrough.word_logits(reader, "apple", passage)
    assert words == passage.split()
    assert len(reader.made) > 3
    # [CLS] apple [SEP], then x ##y ##z - q: the first word's pieces are tokens 3 to 7 of the first window alone.
    assert logits[0].tolist() == [7, -3]
    assert logits[1].tolist() == [8, -8]
    assert np.isfinite(logits).all()
    later = logits[len(words) // 2]
    assert later[0] > -later[1]  # two windows show this word; each of its logits is the higher of both


def test_results_are_read_where_they_are(tmp_path):
    assert walkthrough.measured("gelu", tmp_path) == []
    (tmp_path / "gelu").mkdir()
    lines = ["case,dtype,p50_us", "32x128,float16,1.5", "minilm 32x384,float16,4.5", "32x384,bfloat16,5.5"]
    (tmp_path / "gelu" / "results.csv").write_text("\n".join(lines))
    assert [row["p50_us"] for row in walkthrough.measured("gelu", tmp_path)] == ["4.5"]
    (tmp_path / "gelu" / "results.csv").write_text("\n".join(lines[:2]))
    assert [row["p50_us"] for row in walkthrough.measured("gelu", tmp_path)] == ["1.5"]


def test_text_is_no_markup():
    drawn = walkthrough.highlighted("a < b?", "x <b>y</b> & z", 2, 8)
    assert "<b>a &lt; b?</b>" in drawn
    assert ">&lt;b&gt;y&lt;/</mark>b&gt; &amp; z" in drawn
    assert "<mark" not in walkthrough.highlighted("", "no answer", 0, 0)
    assert "&lt;i&gt;" in walkthrough.bars(["<i>"], np.array([[0.0, 1.0]]))
    assert walkthrough.table(["t"], [["<"]]).count("&lt;") == 1


def test_numbers_stand_at_the_right_of_their_column_and_text_at_the_left():
    drawn = walkthrough.table(["a", "b", "c", "d"], [["x", 1234, 2.0, "50 %"]])
    cells = re.findall(r'<td style="text-align: (\w+)[^>]*>([^<]*)', drawn)
    assert cells == [("left", "x"), ("right", "1,234"), ("right", "2.00"), ("right", "50 %")]


def test_bars_are_as_high_as_logits_and_pictures_as_wide_as_lengths():
    drawn = walkthrough.bars(["one", "two"], np.array([[0.0, 1.0], [2.0, 0.0]]), height=41)
    assert re.findall(r"width: 7px; height: (\d+)px", drawn) == ["1", "21", "41", "1"]
    picture = walkthrough.batch_picture([4, 1, 4], width=40)
    boxes = [(fill, float(width)) for width, fill in re.findall(r'width="([\d.]+)" height="10" fill="(\S+)"', picture)]
    assert sum(width for fill, width in boxes if fill != walkthrough.GREY) == 2 * 90  # padded and packed, 10 a token
    assert sum(width for fill, width in boxes if fill == walkthrough.GREY) == 120
    assert "packed: 9 tokens" in picture

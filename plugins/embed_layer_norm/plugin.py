"""The embeddings for TensorRT: what they take, what they give, what to launch."""

import math
from collections.abc import Mapping
from typing import ClassVar

from plugins.launch import Launch
from plugins.registration import Plugin

IDS = ("token_ids", "segment_ids", "position_ids")
TABLES = ("token_table", "position_table", "segment_table")
NORM = ("gamma", "beta")


class EmbedLayerNorm(Plugin):
    """Ids int32 rows, tables A [V, H], [P, H], [2, H], gamma and beta float32 [H] -> y A rows+[H]."""

    op = "embed_layer_norm"
    attributes: ClassVar = {"epsilon": 1e-12}
    inputs: ClassVar[dict[str, str]] = {
        **dict.fromkeys(IDS, "int32"), **dict.fromkeys(TABLES, "A"), **dict.fromkeys(NORM, "float32"),
    }  # fmt: skip

    def output_shape(self, shapes):
        return [*shapes["token_ids"], shapes["token_table"][1]]

    def launches(self, shapes: Mapping, dtype: str, kernels: Mapping) -> list[Launch]:
        width, rows = shapes["token_table"][1], math.prod(shapes["token_ids"])
        ids, widths = {shapes[name] for name in IDS}, {shapes[name][-1] for name in (*TABLES, *NORM)}
        if len(ids) != 1 or len(widths) != 1 or not all(shapes[name][0] for name in TABLES):
            raise ValueError(f"{self.op}: shapes {dict(shapes)} do not belong together")
        format = self.values.get("format", "")
        kernel = f"embed_layer_norm-{width}-{dtype}{format and '-'}{format}"
        each = kernels[kernel].constants["ROWS"]
        lengths = tuple(shapes[name][0] for name in TABLES)
        results = ("y", "q" if format else "y")
        numbers = (self.values["epsilon"], self.values.get("inverse_scale", 1.0))
        arguments = (*IDS, *TABLES, *NORM, *results, rows, *lengths, *numbers)
        return [Launch(kernel, (-(-rows // each),), arguments)]


class EmbedLayerNorm8(EmbedLayerNorm):
    """The same, and y * inverse_scale in float8 or int8 beside it."""

    op = "embed_layer_norm8"
    attributes: ClassVar = {"epsilon": 1e-12, "inverse_scale": 1.0, "format": "float8"}
    outputs: ClassVar = {"y": "A", "q": "Q"}

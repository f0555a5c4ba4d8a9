"""ONNX files: in one piece while they are small, with their weights in a file beside them when they are not."""

from pathlib import Path

import onnx

EXTERNAL_FROM = 1 << 30  # bytes of weights; a protocol buffer ends at 2 GiB
EXTERNAL_TENSOR = 1 << 10  # bytes; smaller tensors stay in the model, where a viewer shows them


def save(model: onnx.ModelProto, path: Path, external_from: int = EXTERNAL_FROM) -> list[Path]:
    """Write a model and check it; returns the files: `path`, and `path`.data with the weights if they are large.

    The check is onnx's own, with shapes inferred through the whole graph. The model is not to be used afterwards: its
    weights may have moved into the file.
    """
    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    data = path.with_name(path.name + ".data")
    if size < external_from:
        onnx.save_model(model, str(path))
    else:
        data.unlink(missing_ok=True)  # onnx would append to it
        onnx.save_model(
            model, str(path), save_as_external_data=True, all_tensors_to_one_file=True, location=data.name,
            size_threshold=EXTERNAL_TENSOR,
        )  # fmt: skip
    onnx.checker.check_model(str(path), full_check=True)
    return [path, data] if size >= external_from else [path]

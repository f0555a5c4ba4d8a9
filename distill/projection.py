"""The learned map W from a student's width to its teacher's, there while distilling and gone at export."""

import zlib

import numpy as np
import tensorflow as tf

from configs.errors import UsageError

KINDS = ("shared", "per_layer", "none")


def choose(asked: str | None, student_width: int, teacher_width: int) -> tuple[str, str]:
    """The kind of projection and why. Raises: UsageError for none where the widths differ."""
    if asked is None:
        if student_width == teacher_width:
            return "none", f"both are {teacher_width} wide"
        return "shared", f"from {student_width} to {teacher_width}, one for all layers as in TinyBERT's code"
    if asked == "none" and student_width != teacher_width:
        raise UsageError(
            f"--projection none needs equal widths, the student has {student_width}, the teacher {teacher_width}; "
            f"choose shared or per_layer, or --hidden {teacher_width}"
        )
    return asked, "--projection"


class Projections:
    """x W + b in float32, one for all places or one each: place 0 is the embedding block, m the student's layer m.

    Args: kind: of `KINDS`; places: how many; inputs, outputs: the student's and the teacher's width.
    """

    def __init__(self, kind: str, places: int, inputs: int, outputs: int):
        self.kind, self.inputs, self.outputs = kind, inputs, outputs
        self.names = {"shared": ["all"], "per_layer": [str(place) for place in range(places)], "none": []}[kind]
        self.kernels = {name: _variable((inputs, outputs), f"{name}.kernel") for name in self.names}
        self.biases = {name: _variable((outputs,), f"{name}.bias") for name in self.names}

    def variables(self) -> dict[str, tf.Variable]:
        """Name -> variable, as the optimizer and last/ know them; best/ never holds them."""
        kernels = {f"projection.{name}.kernel": variable for name, variable in self.kernels.items()}
        return kernels | {f"projection.{name}.bias": variable for name, variable in self.biases.items()}

    def restart(self, seed: int) -> None:
        """Values of the start: the identity where widths agree, otherwise drawn so that lengths are kept on average."""
        for name, variable in self.variables().items():
            if name.endswith(".bias"):
                variable.assign(np.zeros(variable.shape, np.float32))
            elif self.inputs == self.outputs:
                variable.assign(np.eye(self.inputs, dtype=np.float32))
            else:
                drawn = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(variable.shape)
                variable.assign((drawn / np.sqrt(self.inputs)).astype(np.float32))

    def at(self, place: int):
        """A function from float32 [B, S, inputs] to [B, S, outputs] for that place, or None for no projection."""
        if self.kind == "none":
            return None
        name = "all" if self.kind == "shared" else str(place)

        def project(x):
            return tf.einsum("bsi,io->bso", x, self.kernels[name]) + self.biases[name]

        return project


def _variable(shape: tuple[int, ...], name: str) -> tf.Variable:
    return tf.Variable(tf.zeros(shape), name=f"projection.{name}")

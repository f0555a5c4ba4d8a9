"""A plugin as we write it becomes a plugin as TensorRT wants it, registered under its name while a block lasts.

    with registered(trt, ["gelu"]):                           # building: no kernels, no GPU
        parser.parse(model); plan = builder.build_serialized_network(network, config)
    with registered(trt, ["gelu"], KernelSet(folder)):        # running: the instances in the engine keep these kernels
        engine = runtime.deserialize_cuda_engine(plan); context = engine.create_execution_context()

A plugin.py subclasses `Plugin` and says what the operator takes, gives and launches; it knows nothing of TensorRT's
classes. Those are made here, once per TensorRT module: IPluginV3 with its three capabilities, and a creator. What a
plan keeps of a plugin are its attributes. Kernels come from the engine folder each time a plan is opened, so two
engines with different kernels live side by side: each instance holds the set that was registered when it was made. An
execution context makes instances of its own, so further contexts want the plugins registered, too.
"""

import contextlib
import functools
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from plugins import DOMAIN, OPS, VERSION, ops_of, plugin, profile, tensorrt_flavour
from plugins.kernels import KernelSet
from plugins.launch import Launch, Prepared, load
from plugins.tensorrt_values import Axis, Fields, dtype_names, value_of

Run = Callable[[int, Sequence[int], int], None]  # (stream, addresses of inputs then outputs, workspace address)
WORKSPACE_ALIGNMENT = 256  # bytes: of a run's workspace. TensorRT places it at multiples of 128; cuBLASLt refuses those
REMEMBERED = 64  # shapes whose launches stay packed, per instance
ACTIVATIONS = ("float16", "bfloat16")  # what "A" may be


class Plugin(ABC):
    """What an operator is. Subclasses set the four class attributes and write `output_shape` and `launches`.

    op          the operator's name; its folder's, except for a folder's second operator
    attributes  the node's attributes, each with a usual value, whose type (str, int, float) is the attribute's; a node
                must carry them all
    inputs      names and dtypes in order: "A" for the activations' (float16 or bfloat16), "float32", "int32", or "Q"
                for what the attribute `format` says (float8 or int8)
    outputs     the same of the outputs, all of one shape: usually one, called "y"
    """

    op: ClassVar[str]
    attributes: ClassVar[Mapping[str, str | int | float]] = {}
    inputs: ClassVar[Mapping[str, str]]
    outputs: ClassVar[Mapping[str, str]] = {"y": "A"}

    def __init__(self, values: Mapping[str, Any] | None = None, kernels: KernelSet | None = None) -> None:
        """values: the node's attributes. Raises ValueError for one that the operator does not have."""
        if unknown := set(values or ()) - set(self.attributes):
            raise ValueError(f"{self.op} has no attribute {', '.join(sorted(unknown))}")
        self.values: dict[str, Any] = dict(self.attributes) | dict(values or {})
        self.kernels = kernels

    def kinds(self) -> dict[str, str]:
        """Name -> dtype of the inputs and outputs in order, "A" as it is: the plugin does not know it."""
        kinds = {**self.inputs, **self.outputs}
        return {name: self.values["format"] if kind == "Q" else kind for name, kind in kinds.items()}

    @abstractmethod
    def output_shape(self, shapes: Mapping[str, Sequence[Any]]) -> Sequence[Any]:
        """Shape of the outputs from the inputs' shapes; unknown axes add, multiply and floor-divide."""

    @abstractmethod
    def launches(self, shapes: Mapping[str, tuple[int, ...]], dtype: str, kernels: Mapping[str, Any]) -> list[Launch]:
        """What to launch for known shapes of inputs and outputs. kernels[name].constants are those compiled in."""

    def workspace(self, shapes: Mapping[str, tuple[int, ...]], dtype: str) -> int:
        """Bytes of scratch memory that a run with shapes up to these needs; `launches` may name it "workspace". A run
        finds it at a multiple of WORKSPACE_ALIGNMENT."""
        return 0

    def load(self) -> None:
        """Bring onto the GPU what must not be loaded within a capture; called with a context current."""
        for kernel in self.kernels.of_plugin(OPS[self.op]) if self.kernels is not None else ():
            load(kernel)

    def prepare(self, shapes: Mapping[str, tuple[int, ...]], dtype: str) -> Run:
        """A call that runs the operator for these shapes. Overridden by an operator that launches no kernel of ours."""
        if self.kernels is None:
            raise ValueError(f"{self.op} was registered without kernels, which is for building, not for running")
        names = [*self.inputs, *self.outputs, "workspace"]
        ready = [Prepared(self.kernels, launch, names) for launch in self.launches(shapes, dtype, self.kernels)]

        def run(stream: int, addresses: Sequence[int], workspace: int) -> None:
            for launch in ready:
                launch(stream, [*addresses, workspace])

        return run


# Registering is for the process; one at a time, for as long as a plan is built or opened.
_registering = threading.RLock()
_creators: dict[tuple[int, str], Any] = {}  # by module and op: TensorRT keeps a pointer only


@contextlib.contextmanager
def registered(trt: Any, names: Collection[str], kernels: KernelSet | None = None) -> Iterator[None]:
    """The named plugins (folders) are registered inside the block, alone, and no longer after it."""
    with _registering:
        register(trt, names, kernels)
        try:
            yield
        finally:
            unregister(trt, names)


def register(trt: Any, names: Collection[str], kernels: KernelSet | None = None) -> None:
    """Register the named plugins' operators in namespace "retort", in place of those registered before.

    Instances made before keep the kernels they have; a plan opened from now on gets these. Prefer `registered`.
    """
    with _registering:
        unregister(trt, names)
        registry = trt.get_plugin_registry()
        for op in ops_of(tuple(names)):
            creator = _creator_class(trt, plugin(op))(kernels)
            if not registry.register_creator(creator, DOMAIN):
                raise RuntimeError(f"TensorRT has another plugin {DOMAIN}::{op} version {VERSION} already")
            _creators[id(trt), op] = creator


def unregister(trt: Any, names: Collection[str]) -> None:
    """Take the named plugins' operators out of the registry; without effect on those that aren't in it."""
    with _registering:
        for op in ops_of(tuple(names)):
            if (creator := _creators.pop((id(trt), op), None)) is not None:
                trt.get_plugin_registry().deregister_creator(creator)


@functools.cache
def _creator_class(trt: Any, kind: type[Plugin]) -> type:
    bound = _bound_class(trt, kind)

    class Creator(trt.IPluginCreatorV3One):
        def __init__(self, kernels: KernelSet | None) -> None:
            trt.IPluginCreatorV3One.__init__(self)
            self.name, self.plugin_version, self.plugin_namespace = kind.op, str(VERSION), DOMAIN
            self.fields = Fields(trt, kind.attributes)
            self.field_names = self.fields.collection
            self.kernels = kernels

        def create_plugin(self, name: str, fields: Any, phase: Any) -> Any:
            given = {field.name: field for field in fields}
            if missing := set(kind.attributes) - set(given):
                raise ValueError(f"node {name} ({kind.op}) lacks the attribute {', '.join(sorted(missing))}")
            values = {key: value_of(given[key], usual) for key, usual in kind.attributes.items()}
            return bound(kind(values, self.kernels))

    return Creator


@functools.cache
def _bound_class(trt: Any, kind: type[Plugin]) -> type:
    dtype_of = dtype_names(trt)
    bases = (trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime)
    names = [*kind.inputs, *kind.outputs]
    first = [*kind.inputs.values()].index("A")  # the tensor whose dtype is the activations'

    class Bound(*bases):  # type: ignore[misc]
        """TensorRT's side of a plugin. Of an exception in here TensorRT says only that there was one: it is logged."""

        def __init__(self, plugin: Plugin) -> None:
            for base in bases:
                base.__init__(self)
            self.plugin = plugin
            self.fields = Fields(trt, plugin.values)
            self.num_outputs = len(kind.outputs)
            self.wanted = list(plugin.kinds().values())
            self.plugin_name, self.plugin_version, self.plugin_namespace = kind.op, str(VERSION), DOMAIN
            self.in_context = False
            self.shapes: tuple = ()
            self.ready: dict[tuple, Run] = {}

        def get_capability_interface(self, _: Any) -> Any:
            return self

        def clone(self) -> Any:
            return Bound(kind(self.plugin.values, self.plugin.kernels))

        def get_fields_to_serialize(self) -> Any:
            return self.fields.collection

        # Building: types and shapes.
        def get_output_data_types(self, types: Any) -> list:
            found = self.wanted[len(kind.inputs) :]
            known = {name: kind for kind, name in dtype_of.items()} | {"A": types[first]}
            return [known[name] for name in found]

        def get_output_shapes(self, inputs: Any, _: Any, builder: Any) -> list:
            axes = [[Axis(trt, builder, shape[i]) for i in range(len(shape))] for shape in inputs]
            shape = self.plugin.output_shape(dict(zip(kind.inputs, axes, strict=True)))
            found = [trt.DimsExprs(len(shape)) for _ in kind.outputs]
            for dims in found:
                for i, axis in enumerate(shape):
                    dims[i] = axis.expression if isinstance(axis, Axis) else builder.constant(axis)
            return found

        def supports_format_combination(self, at: int, tensors: Any, _: int) -> bool:
            desc = tensors[at].desc
            name = dtype_of.get(desc.type)
            wanted = self.wanted[at]
            fits = name == wanted if wanted != "A" else name in ACTIVATIONS
            same = wanted != "A" or at <= first or desc.type == tensors[first].desc.type
            return desc.format == trt.TensorFormat.LINEAR and fits and same

        def configure_plugin(self, inputs: Any, outputs: Any) -> None:
            pass

        def get_workspace_size(self, inputs: Any, outputs: Any) -> int:
            largest = [tuple(tensor.max) for tensor in [*inputs, *outputs]]
            dtype = dtype_of[[*inputs, *outputs][first].desc.type]
            size = self.plugin.workspace(dict(zip(names, largest, strict=True)), dtype)
            return size and size + WORKSPACE_ALIGNMENT  # with room to begin at the next multiple

        def get_valid_tactics(self) -> list:
            return []

        def set_tactic(self, _: int) -> None:
            pass

        # Running: load, pack when shapes change, launch.
        def attach_to_context(self, _: Any) -> Any:
            copy = self.clone()
            copy.in_context = True
            copy.plugin.load()
            return copy

        def on_shape_change(self, inputs: Any, outputs: Any) -> None:
            tensors = [*inputs, *outputs]
            self.shapes = (dtype_of[tensors[first].type], *(tuple(tensor.dims) for tensor in tensors))
            if self.in_context:  # a builder tells shapes, too, perhaps without a GPU; it may never ask for a run
                with _logged(kind.op):
                    self.prepared()

        def prepared(self) -> Run:
            if self.shapes not in self.ready:
                if len(self.ready) >= REMEMBERED:
                    self.ready.pop(next(iter(self.ready)))
                dtype, *shapes = self.shapes
                self.ready[self.shapes] = self.plugin.prepare(dict(zip(names, shapes, strict=True)), dtype)
            return self.ready[self.shapes]

        def enqueue(self, _: Any, __: Any, inputs: Any, outputs: Any, workspace: int, stream: int) -> None:
            with _logged(kind.op):
                run = self.prepared()
                workspace += -workspace % WORKSPACE_ALIGNMENT
                if (record := profile.current()) is None:
                    run(stream, [*inputs, *outputs], workspace)
                    return
                dtype, *shapes = self.shapes
                named = dict(zip(names, shapes, strict=True))
                record.around(
                    kind.op, named, dtype, stream, lambda: run(stream, [*inputs, *outputs], workspace)
                )  # fmt: skip

    return Bound


@contextlib.contextmanager
def _logged(op: str) -> Iterator[None]:
    """An exception inside goes on its way, and into the log of this process and what TensorRT's loggers have heard."""
    try:
        yield
    except Exception as error:
        logging.error("plugin %s: %s: %s", op, type(error).__name__, error)
        tensorrt_flavour.tell(op, error)
        raise

"""A TensorRT plan, opened: the one file of serve that speaks to TensorRT, in either of its flavours.

What TensorRT-RTX makes for a shape when it first meets it is kept in a cache on disk.
"""

import os
import tempfile
from contextlib import suppress
from typing import Any

from configs.errors import UserError
from plugins import cache_folder, registration, tensorrt_flavour
from plugins.tensorrt_flavour import reason
from serve.buckets import Bucket
from serve.fitting import Fitted
from serve.manifest import PLAN, Manifest
from serve.packed import ROWS

MOST_CACHE_BYTES = 1 << 30


class Plan:
    """A deserialised plan with execution contexts, each with memory of its own for what lies between the layers.

    What is run in different contexts may overlap on the GPU. Not for several threads at once. There are as many as were
    asked for or, where memory is short, as there was room for; `note` tells of that.
    """

    def __init__(self, manifest: Manifest, fitted: Fitted, contexts: int) -> None:
        """contexts: at most. Raises: UserError where TensorRT refuses the plan, or it is not the one that engine.json
        describes; RuntimeError without memory for a single context."""
        trt = fitted.trt
        self._log = tensorrt_flavour.logger(trt)
        self._runtime = trt.Runtime(self._log)
        path = manifest.folder / PLAN
        plan = path.read_bytes()
        if hasattr(self._runtime, "get_engine_validity"):  # TensorRT-RTX looks at the header before it reads on
            validity, diagnostics = self._runtime.get_engine_validity(plan)
            # 1.6.1 says of 9.0 that it is not supported, and runs there. That the plan is for this GPU, engine.json has
            # said; if it cannot be run all the same, opening it will fail.
            only_the_gpu = diagnostics == int(trt.EngineInvalidityDiagnostics.UNSUPPORTED_CC)
            if validity == trt.EngineValidity.INVALID and not only_the_gpu:
                said = f"diagnostics {diagnostics:#x}, {reason(self._log)}"
                raise UserError(f"TensorRT refuses {path} on this machine ({said}); export again here")
        self._cache = None
        name = f"{manifest.files[PLAN].sha256[:32]}-sm_{fitted.gpu.architecture}.cache"
        self._cache_path = cache_folder("tensorrt") / name
        with registration.registered(trt, list(manifest.plugins), fitted.kernels):
            self._engine = self._runtime.deserialize_cuda_engine(plan)
            if self._engine is None:
                raise UserError(f"TensorRT cannot read {path}: {reason(self._log)}; export the engine again")
            self._expect(trt, manifest)
            config = self._config(trt)
            made = [self._engine.create_execution_context(config) for _ in range(contexts)]
        self.contexts = [Context(context, self._log) for context in made if context is not None]
        self.note = ""
        if None in made:
            self.note = (
                f"TensorRT made {len(self.contexts)} of {contexts} execution contexts: {reason(self._log)}; "
                "an engine exported with a smaller --max-tokens or --max-batch needs less memory"
            )
        if not self.contexts:
            raise RuntimeError(self.note)

    def save_cache(self) -> None:
        """Keep the kernels made so far for the next process; a full disk costs that, and nothing else."""
        blob = self._cache.serialize() if self._cache else None
        if blob is None:
            return
        with suppress(OSError):
            self._cache_path.parent.mkdir(parents=True, exist_ok=True)
            handle, scratch = tempfile.mkstemp(dir=self._cache_path.parent)
            with os.fdopen(handle, "wb") as file:
                file.write(memoryview(blob))
            os.replace(scratch, self._cache_path)

    def _config(self, trt: Any) -> Any:
        config, self._cache = tensorrt_flavour.runtime_config(trt, self._engine)
        if self._cache is not None:
            with suppress(OSError):
                if self._cache_path.stat().st_size <= MOST_CACHE_BYTES:
                    self._cache.deserialize(self._cache_path.read_bytes())  # it checks GPU and versions, or says no
        return config

    def _expect(self, trt: Any, manifest: Manifest) -> None:
        """Names, types and profile of the plan against the manifest's. Raises: UserError."""
        engine, profile = self._engine, manifest.profile
        names = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
        packed = manifest.layout == "packed"
        inputs = {*ROWS, "cu_seqlens"} if packed else {"token_ids", "segment_ids", "padding_mask"}
        types = dict.fromkeys(inputs, trt.int32) | {output.name: trt.float32 for output in manifest.outputs}
        if names != set(types) or any(engine.get_tensor_dtype(name) != dtype for name, dtype in types.items()):
            raise UserError(
                f"{manifest.folder / PLAN} has {sorted(names)}, which is not the {manifest.layout} layout that "
                "engine.json states; export the engine again"
            )
        for name, bounds in _bounds(profile, packed).items():
            least, _, most = (tuple(dims) for dims in engine.get_tensor_profile_shape(name, 0))
            if any(low > ours[0] for low, ours in zip(least, bounds, strict=True)) or any(
                high < ours[1] for high, ours in zip(most, bounds, strict=True)
            ):
                raise UserError(
                    f"{manifest.folder / PLAN} takes {name} from {least} to {most}, engine.json promises {bounds}; "
                    "export the engine again"
                )


class Context:
    """Where a plan is run. One run after the other: the layers' memory is the same for all of them.

    It knows nothing of its `Plan`: in a ring of references both, and their memory on the GPU, would outlive the last
    user until Python looks for such rings, if it does (`serve/quiet.py`).
    """

    def __init__(self, context: Any, log: Any) -> None:
        """TensorRT's context, and the logger that it tells its errors."""
        self._context, self._log = context, log

    def prepare(self, bucket: Bucket, inputs: int, outputs: int) -> None:
        """Shapes and addresses of the next `execute`: a bucket's arrays in blocks at these addresses of the GPU."""
        for name, (word, shape) in bucket.inputs.items():
            self._must(self._context.set_input_shape(name, shape), f"the shape {shape} of {name}")
            self._must(self._context.set_tensor_address(name, inputs + 4 * word), f"an address for {name}")
        for name, (word, _) in bucket.outputs.items():
            self._must(self._context.set_tensor_address(name, outputs + 4 * word), f"an address for {name}")

    def place(self, addresses: dict[str, int]) -> None:
        """Outputs of the next `execute` go to these addresses of the GPU instead: name -> address."""
        for name, address in addresses.items():
            self._must(self._context.set_tensor_address(name, address), f"an address for {name}")

    def execute(self, stream: Any) -> None:
        """Put the work on a stream."""
        self._must(self._context.execute_async_v3(int(stream)), "to run")

    def _must(self, done: bool, what: str) -> None:
        if not done:
            raise RuntimeError(f"TensorRT refused {what}: {reason(self._log)}")


def _bounds(profile: Any, packed: bool) -> dict[str, list[tuple[int, int]]]:
    """Least and most of every axis of two inputs that show the whole profile."""
    count = (profile.batch.least, profile.batch.most)
    if packed:
        tokens = (profile.tokens.least, profile.tokens.most)
        return {"token_ids": [tokens], "cu_seqlens": [(count[0] + 1, count[1] + 1)]}
    return {"token_ids": [count, (profile.length.least, profile.length.most)]}

"""An engine on ONNX Runtime: model.onnx in float32, on any CPU, and on a GPU where onnxruntime-gpu is installed.

Its packed attention is the function's body, standard ONNX, which computes every token against every token of the call
and masks what does not belong together. Runs are therefore cut into groups of whole sequences with a budget of tokens:
enough to keep the matrix products busy, few enough that what is masked stays cheap. No result depends on the groups.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from configs.errors import UserError
from serve import gpu
from serve.manifest import MODEL, Manifest
from serve.packed import ROWS, Packed, check, cut
from serve.session import Logits, Session, Ticket

# Tokens a call; a longer sequence is a call alone. Measured with MiniLM of 6 layers on 2 cores, tokens a second for
# windows of SQuAD, packed: 128 6,800, 256 7,000, 512 6,000, 1,024 4,600. Padded it hardly matters from 256 to 1,024.
BUDGETS = {"packed": 256, "padded": 512}
CALLS_A_BATCH = 8
PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")
NAMES = {"CUDAExecutionProvider": "CUDA", "CPUExecutionProvider": "the CPU"}


class OnnxSession(Session):
    """See `Session`. Safe to share between threads."""

    runtime = "onnxruntime"

    def __init__(
        self,
        manifest: Manifest,
        *,
        reason: str = "",
        providers: list[str] | None = None,
        threads: int | None = None,
        token_budget: int | None = None,
        calls: int = 1,
    ) -> None:
        """Args:
            reason: why this runtime, for `why`.
            providers: execution providers of ONNX Runtime in the order of preference; the first must be usable. None:
                CUDA where it is installed and a GPU is there, then the CPU.
            threads: of one call on the CPU; None: the cores that this process may use, shared among the calls.
            token_budget: tokens a call; None: BUDGETS.
            calls: at a time on a CPU, for batches that are submitted; each with fewer threads, which wait less for each
                other. A GPU gets one at a time.
        Raises: UserError where the model is broken, is not this manifest's, or a provider is missing.
        """
        import onnxruntime as ort

        super().__init__(manifest)
        asked, noted = _providers(ort, providers)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or max(1, gpu.cores() // calls)
        options.log_severity_level = 3  # errors; that a provider leaves some nodes to the CPU is no news
        path = manifest.folder / MODEL
        try:
            self._session = ort.InferenceSession(str(path), options, providers=asked)
        except Exception as error:  # its own exception types derive from nothing but Exception
            raise UserError(
                f"ONNX Runtime {ort.__version__} cannot open {path}: {_first_line(error)}; export the engine again"
            ) from error
        used = self._session.get_providers()[0]
        if used != asked[0]:  # it says so in a log line and takes the next one
            if providers:
                raise UserError(f"ONNX Runtime could not start {asked[0]}, only {used}; is its CUDA installed whole?")
            noted = f"{asked[0]} could not be started"
        self._expect_signature()
        self.device = gpu.cpu_name() if used == PROVIDERS[1] else _gpu_name()
        calls = calls if used == PROVIDERS[1] else 1
        self._pool = ThreadPoolExecutor(calls, "onnx-call") if calls > 1 else None
        self.slots, self.at_once = calls + 1, calls > 1
        at_once = f"{calls} calls of {options.intra_op_num_threads}" if calls > 1 else options.intra_op_num_threads
        place = f"{NAMES.get(used, used)}, {at_once} threads"
        reasons = "; ".join(word for word in (reason, noted) if word)
        self.why = f"ONNX Runtime {ort.__version__} on {place}, float32" + (f" ({reasons})" if reasons else "")
        self._budget = token_budget or BUDGETS[manifest.layout]

    @property
    def batch_tokens(self) -> int:
        """A few calls' worth: larger batches are cut up anyway, and progress should be seen."""
        return min(super().batch_tokens, CALLS_A_BATCH * self._budget)

    def submit(self, batch: Packed) -> Ticket:
        """See `Session`; with several calls at a time it returns at once."""
        if self._pool is None:
            return super().submit(batch)
        check(batch, self.manifest)
        return Ticket(pending=self._pool.submit(self._compute, batch))

    def close(self) -> None:
        if self._pool:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _compute(self, batch: Packed) -> Logits:
        padded = self.manifest.layout == "padded"
        groups = cut(batch.lengths, self._budget, self.manifest.profile.batch.most, padded=padded)
        if padded:
            return self._padded(batch, groups)
        if len(groups) == 1:
            return self._call({name: getattr(batch, name) for name in (*ROWS, "cu_seqlens")})
        parts = [batch.take(int(group[0]), int(group[-1]) + 1) for group in groups]
        results = [self._call({name: getattr(part, name) for name in (*ROWS, "cu_seqlens")}) for part in parts]
        return tuple(np.concatenate(arrays) for arrays in zip(*results, strict=True))

    def _padded(self, batch: Packed, groups: list[np.ndarray]) -> Logits:
        """Groups of like length, each padded to its longest; results back in the order of the batch."""
        outputs = self.manifest.outputs
        rows = {"token": batch.tokens, "sequence": len(batch)}
        found = tuple(np.empty((rows[o.per], *([] if o.width is None else [o.width])), np.float32) for o in outputs)
        for group in groups:
            lengths = batch.lengths[group]
            mask = np.arange(lengths.max())[None, :] < lengths[:, None]  # [B, S]
            place = (batch.cu_seqlens[group][:, None] + np.arange(lengths.max()))[mask]  # this group's tokens
            inputs = {"padding_mask": mask.astype(np.int32)}
            for name in ("token_ids", "segment_ids"):
                inputs[name] = np.zeros(mask.shape, np.int32)
                inputs[name][mask] = getattr(batch, name)[place]
            for output, whole, part in zip(outputs, found, self._call(inputs), strict=True):
                if output.per == "token":
                    whole[place] = part[mask]
                else:
                    whole[group] = part
        return found

    def _call(self, inputs: dict[str, np.ndarray]) -> Logits:
        return tuple(np.asarray(array) for array in self._session.run([o.name for o in self.manifest.outputs], inputs))

    def _expect_signature(self) -> None:
        """The model's inputs and outputs must be those of the layout that engine.json states."""
        packed = self.manifest.layout == "packed"
        needed = {*ROWS, "cu_seqlens"} if packed else {"token_ids", "segment_ids", "padding_mask"}
        inputs = {item.name: item.type for item in self._session.get_inputs()}
        outputs = {item.name: item.type for item in self._session.get_outputs()}
        named = [output.name for output in self.manifest.outputs]
        if inputs != dict.fromkeys(needed, "tensor(int32)") or outputs != dict.fromkeys(named, "tensor(float)"):
            raise UserError(
                f"{self.manifest.folder / MODEL} takes {sorted(inputs)} and gives {sorted(outputs)}, which is not the "
                f"{self.manifest.layout} layout that engine.json states; export the engine again"
            )


def _providers(ort: Any, asked: list[str] | None) -> tuple[list[str], str]:
    """(providers to try, what is to be said about the choice)."""
    there = ort.get_available_providers()
    if asked:
        if missing := [name for name in asked if name not in there]:
            raise UserError(f"ONNX Runtime here has no {missing[0]}, only {', '.join(there)}; install a build with it")
        return list(asked), ""
    if PROVIDERS[0] in there and isinstance(gpu.find(), gpu.Gpu):
        return list(PROVIDERS), ""
    return [PROVIDERS[1]], ""


def _gpu_name() -> str:
    found = gpu.find()
    return found.name if isinstance(found, gpu.Gpu) else "a GPU"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]

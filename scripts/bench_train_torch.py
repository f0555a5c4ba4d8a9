"""The same training step as anybody would write it in PyTorch, compiled and in AMP: what `bench_train` compares with.

    python -m scripts.bench_train_torch FOLDER      # reads FOLDER/job.json, writes FOLDER/result.json

A process of its own, so that each framework has the GPU's memory to itself; torch is no dependency and is used where it
is installed. `torch.compile` of forward pass and loss, `scaled_dot_product_attention`, autocast, `GradScaler`,
gradient clipping, fused AdamW without decay on biases and norms, a schedule; loss and norm stay on the device.
"""

import importlib
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from model.config import BertConfig

WARM_UP = 5


def main(folder: Path) -> dict:
    """Do the job that job.json describes."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    torch: Any = importlib.import_module("torch")
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.manual_seed(job["seed"])
    config = BertConfig(**job["sizes"])
    trainer = Trainer(torch, config, job)
    if job["weights"]:
        with np.load(folder / job["weights"]) as tensors:
            trainer.load({name: tensors[name] for name in tensors.files})
    with np.load(folder / "rows.npz") as arrays:
        rows = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    result = one_batch(torch, trainer, rows, job) if job["epochs"] == 0 else epochs(torch, trainer, rows, job, folder)
    return result | {"torch": torch.__version__, "device": torch.cuda.get_device_name(0) if trainer.gpu else "CPU"}


class Trainer:
    """Model, optimizer and scaler.

    job: precision, compile, lr, warmup and total updates.
    """

    def __init__(self, torch: Any, config: BertConfig, job: dict):
        self.torch, self.gpu = torch, torch.cuda.is_available()
        self.device = torch.device("cuda" if self.gpu else "cpu")
        self.model = model(torch, config).to(self.device)
        plain = [p for p in self.model.parameters() if p.ndim == 1]
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        self.parameters = decayed + plain
        groups = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=job["lr"], eps=1e-6, fused=self.gpu)
        self.dtype = None if job["precision"] == "float32" else getattr(torch, job["precision"])
        self.scaler = torch.amp.GradScaler(self.device.type, init_scale=2.0**15, enabled=job["precision"] == "float16")
        warmup, total = job["warmup"], job["total"]

        def rate(done: int) -> float:
            return (done + 1) / max(warmup, 1) if done < warmup else max(0.0, (total - done) / max(total - warmup, 1))

        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, rate)
        self.forward = torch.compile(self.model, dynamic=False) if job["compile"] else self.model

    def load(self, tensors: dict[str, np.ndarray]) -> None:
        """Start from weights by our names; kernels are [in, out] there and [out, in] in torch."""
        own = dict(self.model.named_parameters())
        for name, value in tensors.items():
            value = np.array(value.T if name.endswith("kernel") else value, np.float32, order="C")
            own[torch_name(name)].data.copy_(self.torch.from_numpy(value))

    def autocast(self):
        return self.torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None)

    def step(self, batch: dict) -> Any:
        """One update; returns (loss, norm) on the device."""
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            loss = self.forward(**batch)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        norm = self.torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        return loss.detach(), norm

    def wait(self) -> None:
        if self.gpu:
            self.torch.cuda.synchronize()


def model(torch: Any, config: BertConfig) -> Any:
    """A module (token_ids, segment_ids, start_positions, end_positions, padding_mask) -> loss; mask None for none."""
    nn, functional = torch.nn, torch.nn.functional
    heads, size, width, epsilon = config.heads, config.head_size, config.hidden, config.layer_norm_epsilon

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention_qkv, self.attention_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.ffn_in, self.ffn_out = nn.Linear(width, config.ffn), nn.Linear(config.ffn, width)
            self.attention_norm, self.ffn_norm = nn.LayerNorm(width, eps=epsilon), nn.LayerNorm(width, eps=epsilon)
            self.drop = nn.Dropout(config.dropout)

        def forward(self, x, mask):
            batch, length, _ = x.shape
            q, k, v = self.attention_qkv(x).view(batch, length, 3, heads, size).permute(2, 0, 3, 1, 4)  # [B, N, S, D]
            rate = config.attention_dropout if self.training else 0.0
            context = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=rate)
            context = context.transpose(1, 2).reshape(batch, length, width)
            x = self.attention_norm(x + self.drop(self.attention_out(context)))
            inner = functional.gelu(self.ffn_in(x), approximate="none" if config.gelu == "erf" else "tanh")
            return self.ffn_norm(x + self.drop(self.ffn_out(inner)))

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Embedding(config.vocabulary, width)
            self.position = nn.Embedding(config.positions, width)
            self.segment = nn.Embedding(config.segments, width)
            self.norm, self.drop = nn.LayerNorm(width, eps=epsilon), nn.Dropout(config.dropout)
            self.layers = nn.ModuleList(Layer() for _ in range(config.layers))
            self.span = nn.Linear(width, 2)
            for module in self.modules():
                if isinstance(module, nn.Linear | nn.Embedding):
                    nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
                if isinstance(module, nn.Linear):
                    nn.init.zeros_(module.bias)

        def logits(self, token_ids, segment_ids, padding_mask):
            mask = None if padding_mask is None else padding_mask[:, None, None, :].bool()
            places = torch.arange(token_ids.shape[1], device=token_ids.device)
            x = self.token(token_ids) + self.segment(segment_ids) + self.position(places)
            x = self.drop(self.norm(x))
            for layer in self.layers:
                x = layer(x, mask)
            logits = self.span(x).float()  # [B, S, 2]
            return logits[..., 0], logits[..., 1]

        def forward(self, token_ids, segment_ids, start_positions, end_positions, padding_mask=None):
            start, end = self.logits(token_ids, segment_ids, padding_mask)
            if padding_mask is not None:
                hidden = (1.0 - padding_mask.float()) * -1e9
                start, end = start + hidden, end + hidden
            return (functional.cross_entropy(start, start_positions) + functional.cross_entropy(end, end_positions)) / 2

    return Encoder()


# Ends of our names of weights -> ends of the module's.
ENDS = {".kernel": ".weight", ".scale": ".weight", ".offset": ".bias", ".bias": ".bias"}


def torch_name(name: str) -> str:
    """`layers.0.attention.qkv.kernel` -> `layers.0.attention_qkv.weight`."""
    name = name.removeprefix("embeddings.")
    stem, dot, end = name.rpartition(".")
    if not dot:
        return f"{name}.weight"  # an embedding table
    return re.sub(r"(attention|ffn)\.", r"\1_", stem) + ENDS[dot + end]


def one_batch(torch: Any, trainer: Trainer, rows: dict, job: dict) -> dict:
    """Time the step on a batch that stays on the device; no mask, as none is needed."""
    batch = on_device(trainer, rows)
    del batch["padding_mask"]
    start = time.perf_counter()
    trainer.step(batch)
    trainer.wait()
    first = time.perf_counter() - start
    for _ in range(WARM_UP):
        trainer.step(batch)
    trainer.wait()
    if trainer.gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(job["repetitions"]):
        start = time.perf_counter()
        for _ in range(job["steps"]):
            trainer.step(batch)
        trainer.wait()
        seconds.append((time.perf_counter() - start) / job["steps"])
    return {"step_ms": float(np.median(seconds)) * 1e3, "first_step_s": first, "peak_gib": peak_gib(torch, trainer)}


def epochs(torch: Any, trainer: Trainer, rows: dict, job: dict, folder: Path) -> dict:
    """Fine-tune on all windows, each padded to the longest, in the given order; then logits of the dev windows.

    Windows a second are those of the epochs after the first, which compiles; with the copy to the device, without
    evaluation.
    """
    names = ("token_ids", "segment_ids", "padding_mask", "start_positions", "end_positions")
    done, seconds, first = 0, 0.0, 0.0
    begun = time.perf_counter()
    for epoch, order in enumerate(rows["order"]):  # [steps, B]; -1 where the last batch is not full
        start = time.perf_counter()
        for places in order:
            places = places[places >= 0]
            trainer.step(on_device(trainer, {name: rows[name][places] for name in names}))
            if not first:
                trainer.wait()
                first = time.perf_counter() - begun
        trainer.wait()
        if epoch or len(rows["order"]) == 1:
            done, seconds = done + int((order >= 0).sum()), seconds + time.perf_counter() - start
    trainer.model.eval()
    logits = []
    with torch.no_grad(), trainer.autocast():
        for at in range(0, len(rows["dev_token_ids"]), 64):
            part = {name: rows[f"dev_{name}"][at : at + 64] for name in names[:3]}
            start_logits, end_logits = trainer.model.logits(**on_device(trainer, part))
            logits.append(torch.stack([start_logits, end_logits], -1).float().cpu().numpy())
    np.savez(folder / "logits.npz", logits=np.concatenate(logits) if logits else np.zeros((0, 1, 2), np.float32))
    return {"seq_per_s": done / seconds, "first_step_s": first, "peak_gib": peak_gib(torch, trainer)}


def on_device(trainer: Trainer, rows: dict) -> dict:
    """Arrays of a batch by the names of the module's arguments, indices as int64."""
    chosen = ("token_ids", "segment_ids", "padding_mask", "start_positions", "end_positions")
    given = {name: rows[name].pin_memory() if trainer.gpu else rows[name] for name in chosen if name in rows}
    return {name: value.to(trainer.device, non_blocking=True).long() for name, value in given.items()}


def peak_gib(torch: Any, trainer: Trainer) -> float:
    return torch.cuda.max_memory_allocated() / 2**30 if trainer.gpu else float("nan")


if __name__ == "__main__":
    target = Path(sys.argv[1])
    (target / "result.json").write_text(json.dumps(main(target)), encoding="utf-8")

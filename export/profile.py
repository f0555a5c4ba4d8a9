"""Which batches a plan takes, and which it is tuned for: smallest, usual and largest size of every axis."""

from configs.errors import UsageError
from export.checkpoint import Checkpoint
from export.config import PlanConfig
from serve.manifest import Profile, Range


def choose(config: PlanConfig, checkpoint: Checkpoint, layout: str) -> Profile:
    """The profile of the settings. Raises: UsageError where windows would not fit, or sizes contradict each other."""
    window, positions = checkpoint.info.window, checkpoint.config.positions
    length = config.max_length or window
    if not window <= length <= positions:
        raise UsageError(
            f"--max-length {length}: the run's windows have up to {window} tokens, its weights {positions} positions; "
            f"choose a length from {window} to {positions}"
        )
    batch = _axis("batch", config.usual_batch or max(config.max_batch // 4, 1), config.max_batch)
    lengths = _axis("length", config.usual_length or max(length // 3, 1), length)
    if layout == "padded":
        if config.max_tokens:
            raise UsageError("--max-tokens is for --layout packed; --layout padded takes --max-batch and --max-length")
        return Profile(batch, None, lengths)
    most = config.max_tokens or batch.most * lengths.most
    if most < length:
        raise UsageError(f"--max-tokens {most} does not hold one window of {length} tokens; make it at least {length}")
    return Profile(batch, Range(1, min(batch.usual * lengths.usual, most), most), None)


def _axis(name: str, usual: int, most: int) -> Range:
    if usual > most:
        raise UsageError(f"--usual-{name} {usual} is more than --max-{name} {most}")
    return Range(1, usual, most)

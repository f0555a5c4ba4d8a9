"""Batches of every size that a batcher may make, for the device to prepare before anybody waits for it.

On TensorRT the first batch of a size costs some 20 ms, two graphs to capture included, and hundreds where cuBLASLt's
algorithms are searched: a server that met its sizes one after the other would miss its p99 for minutes.
"""

from collections.abc import Iterator

import numpy as np

from serve.buckets import Buckets
from serve.manifest import Manifest
from serve.packed import Packed

WARM_S = 60.0  # for all sizes together; BERT-base takes 5


def every_size(manifest: Manifest, most_tokens: int) -> Iterator[Packed]:
    """A batch for each bucket that batches of up to so many tokens fall into, from small to large, of random ids."""
    for tokens, sequences in Buckets(manifest).likely(most_tokens):
        yield filled(manifest, tokens, sequences)


def filled(manifest: Manifest, tokens: int, sequences: int) -> Packed:
    """A batch of so many tokens in so many sequences of about one length, ids that the model knows, always the same."""
    ids = np.random.default_rng(0)
    each, longer = divmod(tokens, sequences)
    lengths = [each + (place < longer) for place in range(sequences)]
    rows = [ids.integers(0, manifest.sizes["vocabulary"], length) for length in lengths]
    return Packed.of(rows, [np.zeros(length, np.int32) for length in lengths])

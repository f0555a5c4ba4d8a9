"""cuBLASLt's algorithms, timed on this GPU for every size that the engine meets, into the engine folder.

Which one is fastest depends on the product's sizes and the GPU. A process that runs an engine would time them when it
first meets a size (`plugins/linear/matmul.py`), which makes first answers late, and two processes differ in the last
bit. So the plan is run here once for every size class of its products; what was chosen is a file of the folder.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

from tqdm import tqdm

from configs.errors import UserError
from export.engine import Plan
from plugins.linear import choices, matmul
from plugins.linear.product import Product
from serve.buckets import Buckets
from serve.manifest import Manifest
from serve.packed import Packed
from serve.session import Session
from serve.warming import filled

# Plugins that may call cuBLASLt.
CALLERS = {"linear", "linear_skip_layer_norm", "linear8"}


def search(folder: Path, plan: Plan, say: Callable[[str], None]) -> bool:
    """Run the plan of a finished engine folder on this GPU and write `choices.FILE`; whether there is anything in it.

    What fails costs the file and nothing else: the gate, which runs the plan next, says what is wrong with it.
    """
    if not CALLERS & set(plan.plugins):
        return False
    try:
        with Session.open(folder, "tensorrt") as session:
            sizes = representatives(Buckets(session.manifest).keys(), session.manifest.layout)
            for key in tqdm(sizes, "algorithms", unit="size", leave=False, mininterval=0.5):
                session.run(batch(key, session.manifest))
            gpu, version, found = matmul.winners()
    except (RuntimeError, UserError, ValueError) as error:
        say(f"algorithms: none in the folder, for the plan did not run: {error}")
        return False
    if not found:
        say("algorithms: none in the folder, for no product of this engine goes through cuBLASLt")
        return False
    choices.write(folder / choices.FILE, gpu, version, found)
    say(f"algorithms: {len(found)} of cuBLASLt {version} for {len(sizes)} sizes on {gpu}")
    return True


def representatives(keys: Iterable[tuple[int, int]], layout: str) -> list[tuple[int, int]]:
    """One bucket for every size class of a product, the largest of each, ascending."""
    found: dict[int, tuple[int, tuple[int, int]]] = {}
    for key in keys:
        tokens = key[0] if layout == "packed" else key[0] * key[1]
        size_class = Product(tokens, 8, 8, "float16", False).size_class[0]
        found[size_class] = max(found.get(size_class, (0, key)), (tokens, key))
    return [found[size_class][1] for size_class in sorted(found)]


def batch(key: tuple[int, int], manifest: Manifest) -> Packed:
    """What fills a bucket: packed (tokens, sequences), padded (rows, length)."""
    first, second = key
    return filled(manifest, first, second) if manifest.layout == "packed" else filled(manifest, first * second, first)

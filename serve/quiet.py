"""What a process that answers requests does for the slowest of them, once its engines are open.

    quiet.settle()      # after loading, and again after every exchange of an engine

Python looks through all objects there are for garbage whenever enough new ones have survived, and nothing else runs
then: 40 ms for the 130,000 objects of an engine's modules, more with more, which every request of that time waits. What
is there after loading stays there, so it is taken out of what is looked through; what is left are requests under way.
"""

import gc


def settle() -> None:
    """Throw garbage away now, and look no more through what is left. Takes as long as Python's look does otherwise."""
    gc.unfreeze()  # an engine that was exchanged may have left some
    gc.collect()
    gc.freeze()

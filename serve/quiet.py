"""What a process that answers requests does for the slowest of them, once its engines are open.

    quiet.settle()      # after loading, and again after every exchange of an engine

**Garbage.** Python looks through all objects there are once enough new ones have survived, and nothing else runs then:
with the modules of an engine on a GPU loaded, and the questions of a measurement, that took some 200 ms, which every
request of that time waited. What is there after loading stays there, so it is taken out of what is looked through;
what is left to look at are requests under way, which takes a millisecond.

**Turns.** A thread that wants Python's lock has it when its holder waits for something, or asks for it after the switch
interval, of 5 ms. An answer needs the lock a few times for some 50 us each, and whoever cuts a text or a body into
pieces may hold it for longer than that: each time the answer would wait for a large part of a p99 of 10 ms.
"""

import gc
import sys

SWITCH_S = 0.0005  # longer than most turns, so that they are not cut up; see `scripts/measure_server.py`


def settle() -> None:
    """Throw garbage away now, look no more through what is left, and take short turns. Takes a tenth of a second."""
    sys.setswitchinterval(SWITCH_S)
    gc.unfreeze()  # an engine that was exchanged may have left some
    gc.collect()
    gc.freeze()

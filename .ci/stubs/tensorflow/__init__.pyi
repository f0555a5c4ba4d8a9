"""TensorFlow for the type checker: anything goes.

The stubs that checkers bring for it refuse right code (`tf.Variable(0)`), and its own source defines most names only
while it is being imported.
"""

from typing import Any

def __getattr__(name: str) -> Any: ...

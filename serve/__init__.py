"""An engine folder and a question with its passage in, an answer out: no TensorFlow, no Keras, no torch."""

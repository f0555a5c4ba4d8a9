"""From a question file to padded batches, and from logits back to answers and scores."""

"""A run folder with random weights is one that export reads, and is not written over another."""

import numpy as np
import pytest

from configs.errors import UsageError, UserError
from export import checkpoint
from scripts import random_run
from scripts.random_run import RandomConfig, main


def test_a_random_run_is_read_by_export_with_the_size_and_vocabulary_asked_for(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "##b"]) + "\n")
    out = tmp_path / "run"
    result = main(RandomConfig("bert-tiny", str(tmp_path / "vocab.txt"), str(out), window=96, gelu="tanh"))
    read = checkpoint.read(out)
    assert (read.config.layers, read.config.hidden, read.config.vocabulary, read.config.gelu) == (2, 128, 6, "tanh")
    assert result["metrics"]["parameters"] == sum(array.size for array in read.tensors.values())
    assert 0.9 < float(np.std(read.tensors["layers.0.ffn.in.kernel"])) * 128**0.5 < 1.1
    with pytest.raises(UserError, match="is there already"):
        main(RandomConfig("bert-tiny", str(tmp_path / "vocab.txt"), str(out)))
    with pytest.raises(UsageError, match="'bert-huge' is not known"):
        RandomConfig("bert-huge", "v", "o")


def test_without_a_vocabulary_it_is_that_of_the_published_weights(tmp_path, monkeypatch):
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "##b", "c"]) + "\n")
    monkeypatch.setattr(random_run, "minilm_folder", lambda: tmp_path)
    main(RandomConfig("bert-tiny", out=str(tmp_path / "run")))
    assert checkpoint.read(tmp_path / "run").config.vocabulary == 7

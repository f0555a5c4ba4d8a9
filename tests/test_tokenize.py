"""Word pieces and their offsets: whatever the normaliser does to a text, the offsets point into the text as it was."""

from pathlib import Path

import numpy as np
import pytest
from data_kit import shared, write_vocab

from configs.errors import UserError
from data import squad, tokenize
from data.tokenize import Tokenizer

AWKWARD = [
    "",
    "   ",
    "the towers was built",
    "The TOWERS, built?!",
    "cafe\u0301 the caf\u00e9",  # combining accent and composed letter
    "\u0301\u0301 the",  # marks on nothing
    "the \u0301tower",  # a mark on a space
    "a\U0001f600b \U0001f468\u200d\U0001f469 the",  # emoji, zero-width joiner
    "\u5317\u4eacthe\u5927\u5b66",  # CJK without spaces
    "\ud55c\uad6d\uc5b4 the",  # Hangul falls apart under NFD
    "\u05e9\u05dc\u05d5\u05dd the \u0645\u062f\u064a\u0646\u0629",  # right to left
    "t\x00he \x07tower\x1f \x85 s\u200bs",  # control and format characters vanish
    "the\ttower\nwas\r\nbuilt",
    "the\u00a0tower\u2028was\u3000built\u202fs",  # spaces that str.split knows and others
    "\u0130stanbul stra\u00dfe \ufb01sh \u039f\u0394\u039f\u03a3",
    "x" * 150 + " the",  # too long for one word
    "[CLS] the [SEP] [MASK]",
    "\ufffd the \ufffd",
    "the " * 300,
]


@pytest.fixture(scope="module")
def vocab(tmp_path_factory) -> Path:
    return write_vocab(
        tmp_path_factory.mktemp("vocab"), extra="\u00e9\u00df\u5317\u4eac\u5927\u5b66\u0130i\u05e9\u05dc\u05d5\u05dd"
    )


def slices(tokenizer: Tokenizer, text: str) -> list[str]:
    return [text[first:last] for first, last in tokenizer.encode_batch([text])[0].offsets]


def test_offsets_slice_the_original_text_and_not_the_normalised_one(vocab: Path):
    tokenizer = Tokenizer(vocab)
    assert slices(tokenizer, "The TOWERS,") == ["The", "TOWER", "S", ","]
    assert slices(tokenizer, "x \U0001f600 th\x00e Tower") == ["x", "\U0001f600", "th\x00e", "Tower"]
    assert slices(tokenizer, "\u5317\u4eacthe") == ["\u5317", "\u4eac", "the"]
    assert "".join(slices(tokenizer, "caf\u00e9")) == "caf\u00e9"
    assert "".join(slices(tokenizer, "cafe\u0301s")) == "cafes"  # the mark itself belongs to no token


@pytest.mark.parametrize("little", [-1, 1 << 30], ids=["word by word", "at once"])
@pytest.mark.parametrize(
    "settings", [{}, {"lowercase": False}, {"chinese": False}, {"lowercase": True, "strip_accents": False}]
)
def test_the_fast_path_gives_the_library_tokens_and_offsets(vocab: Path, settings, little, monkeypatch):
    monkeypatch.setattr(tokenize, "LITTLE", little)
    monkeypatch.setattr(tokenize, "TEXTS_A_CHUNK", 5)  # so that words learnt in one chunk serve another
    tokenizer = Tokenizer(vocab, **settings)
    flat = tokenizer.encode_flat(AWKWARD)
    for i, plain in enumerate(tokenizer.encode_batch(AWKWARD)):
        part = slice(flat.start[i], flat.start[i + 1])
        assert flat.ids[part].tolist() == plain.ids, AWKWARD[i]
        assert flat.offsets[part].tolist() == [list(pair) for pair in plain.offsets], AWKWARD[i]


def test_the_fast_path_agrees_on_random_unicode(vocab: Path, monkeypatch):
    monkeypatch.setattr(tokenize, "LITTLE", -1)
    random = np.random.default_rng(5)
    ranges = [
        (32, 127),
        (32, 33),
        (0, 32),
        (0x80, 0x250),
        (0x300, 0x370),
        (0x590, 0x700),
        (0x2000, 0x2070),
        (0x4E00, 0x4F00),
    ]
    texts = []
    for _ in range(300):
        low, high = np.array(ranges)[random.integers(len(ranges), size=40)].T
        texts.append("".join(map(chr, random.integers(low, high))))
    tokenizer = Tokenizer(vocab)
    flat = tokenizer.encode_flat(texts)
    for i, plain in enumerate(tokenizer.encode_batch(texts)):
        part = slice(flat.start[i], flat.start[i + 1])
        assert flat.ids[part].tolist() == plain.ids, ascii(texts[i])
        assert flat.offsets[part].tolist() == [list(pair) for pair in plain.offsets], ascii(texts[i])


def test_the_fast_path_agrees_on_real_text_and_reports_progress(vocab: Path):
    texts = [e.question for e in squad.read(shared("dev-v1.1.json.gz")).examples]
    done: list[int] = []
    tokenizer = Tokenizer(vocab)
    flat = tokenizer.encode_flat(texts, progress=done.append)
    assert done[-1] == len(texts)
    assert flat.ids.tolist() == [i for encoding in tokenizer.encode_batch(texts) for i in encoding.ids]


@pytest.mark.parametrize("little", [-1, 1 << 30])
def test_no_texts_give_no_tokens(vocab: Path, little, monkeypatch):
    monkeypatch.setattr(tokenize, "LITTLE", little)
    flat = Tokenizer(vocab).encode_flat([])
    assert (len(flat.ids), flat.offsets.shape, flat.start.tolist()) == (0, (0, 2), [0])


def test_a_cased_vocabulary_keeps_capitals_and_accents(tmp_path: Path):
    tokenizer = Tokenizer(write_vocab(tmp_path, words=("Caf\u00e9", "cafe")), lowercase=False)
    assert tokenizer.encode_batch(["Caf\u00e9 cafe"])[0].tokens == ["Caf\u00e9", "cafe"]
    uncased = Tokenizer(write_vocab(tmp_path, words=("Caf\u00e9", "cafe")))
    assert uncased.encode_batch(["Caf\u00e9 cafe"])[0].tokens == ["cafe", "cafe"]


def test_special_tokens_in_a_text_stay_text(vocab: Path):
    tokenizer = Tokenizer(vocab)
    ids = tokenizer.encode_batch(["a [SEP] b [CLS]"])[0].ids
    assert not {tokenizer.sep_id, tokenizer.cls_id} & set(ids)


def test_a_lone_surrogate_does_not_crash_and_shifts_nothing(vocab: Path):
    text = "a\ud800b the"
    assert slices(Tokenizer(vocab), text)[-1] == "the"
    assert Tokenizer(vocab).encode_flat([text]).offsets[-1].tolist() == [4, 7]


def test_the_settings_go_through_a_run_folders_config(vocab: Path):
    settings = {"lowercase": False, "strip_accents": None, "chinese": False}
    assert Tokenizer.from_config(settings, vocab).config() == settings
    with pytest.raises(UserError, match=r"\['casing'\] are not known"):
        Tokenizer.from_config({"casing": True}, vocab)


def test_ids_are_line_numbers(vocab: Path):
    tokenizer = Tokenizer(vocab)
    lines = vocab.read_text(encoding="utf-8").split("\n")
    assert [lines[i] for i in (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id)] == list(
        tokenize.SPECIAL
    )
    assert tokenizer.mask_id is not None
    assert lines[tokenizer.mask_id] == "[MASK]"
    assert tokenizer.size == len(lines) - 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[PAD]\n[UNK]\n[CLS]\nthe\n", r"\(4 lines\) lacks \[SEP\]"),
        (b"", r"lacks \[PAD\], \[UNK\], \[CLS\], \[SEP\]"),
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\nthe\na\nthe\n", "'the' stands in lines 5 and 7"),
        (b"[PAD]\n\xff\n", "byte 6 is not UTF-8"),
    ],
)
def test_a_vocabulary_that_cannot_work_is_refused(tmp_path: Path, content, said):
    path = tmp_path / "vocab.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=said):
        Tokenizer(path)


def test_a_missing_or_monstrous_vocabulary_is_refused(tmp_path: Path, vocab: Path, monkeypatch):
    with pytest.raises(UserError, match="is missing"):
        Tokenizer(tmp_path / "vocab.txt")
    monkeypatch.setattr(tokenize, "MOST_BYTES", 10)
    with pytest.raises(UserError, match="one word piece a line"):
        Tokenizer(vocab)


def test_windows_line_ends_and_line_separators_as_pieces_do_not_shift_ids(tmp_path: Path):
    path = tmp_path / "vocab.txt"
    path.write_bytes("[PAD]\r\n[UNK]\r\n[CLS]\r\n[SEP]\r\n\u2028\r\nthe\r\n".encode())
    tokenizer = Tokenizer(path)
    assert tokenizer.encode_batch(["the"])[0].ids == [5]
    assert tokenizer.mask_id is None


def test_a_word_that_was_met_before_is_not_cut_again(vocab: Path, monkeypatch):
    tokenizer = Tokenizer(vocab)
    cut, real = [], tokenizer._cut_words
    monkeypatch.setattr(tokenizer, "_cut_words", lambda words: cut.append(sorted(words)) or real(words))
    first = tokenizer.encode_flat(["the towers was built", "the tower"])
    again = tokenizer.encode_flat(["built the\ttower", "caf\u00e9"])
    assert cut == [["built", "the", "tower", "towers", "was"], ["caf\u00e9"]]
    assert first.start[-1] == len(first.ids)
    for text, part in zip(["built the\ttower", "caf\u00e9"], again.parted(1), strict=True):
        (plain,) = tokenizer.encode_batch([text])
        assert part.ids.tolist() == plain.ids
        assert part.offsets.tolist() == [list(pair) for pair in plain.offsets]
        assert part.start.tolist() == [0, len(plain.ids)]


def test_the_words_that_are_kept_are_few_and_short(vocab: Path, monkeypatch):
    monkeypatch.setattr(tokenize, "MOST_WORDS", 50)
    tokenizer = Tokenizer(vocab)
    for place in range(100):
        text = f"the {'x' * 65} " + " ".join(f"w{place}a{number}" for number in range(9))
        assert tokenizer.encode_flat([text]).ids.tolist() == tokenizer.encode_batch([text])[0].ids
        assert len(tokenizer._known) <= 50
    assert "the" in tokenizer._known
    assert not [word for word in tokenizer._known if len(word) > 64]

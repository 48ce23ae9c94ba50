import hashlib
import subprocess
import sys
from collections import Counter

import pytest
import torch

from diffunet.core.errors import UserError
from diffunet.core.rng import BatchRNG
from diffunet.data.captions import (
    Sequences,
    TextColumn,
    distinct_captions,
    length_of,
    load_tokenizer,
    mentions_sides,
    read_captions,
    train_tokenizer,
)

COLORS, SHAPES = ("red", "green", "dark blue"), ("circle", "square", "wide triangle")
CAPTIONS = [f"a {color} {shape}" for color in COLORS for shape in SHAPES]
IMAGE = torch.zeros(4, 1, 2, 2)


def rng(step: int = 0, positions: slice = slice(None)) -> BatchRNG:
    return BatchRNG.at(0, step, positions, 4, torch.device("cpu"))


def column(captions: list[list[str]], **options) -> TextColumn:
    distinct = distinct_captions(captions)
    tokens = Sequences.of([[1 + index] * index for index in range(len(distinct))])
    return TextColumn.of(captions, distinct, tokens, length=3, **options)


def test_tokenizer_splits_into_frequent_words_and_knows_every_byte():
    tokenizer = train_tokenizer(CAPTIONS, 4096)
    assert len(tokenizer.encode("a dark blue wide triangle").ids) == 5
    for text in ("zebra", "日本語", "naïve 🦓", "\x00"):
        assert tokenizer.decode(tokenizer.encode(text).ids).strip() == text
    assert tokenizer.get_vocab_size() < 4096
    assert train_tokenizer(CAPTIONS, 260).get_vocab_size() == 260


def test_no_text_gives_the_id_of_padding():
    tokenizer = train_tokenizer([*CAPTIONS, "<pad>", "a <pad>"], 4096)
    assert tokenizer.token_to_id("<pad>") == 0
    assert 0 not in tokenizer.encode("<pad> <PAD> <pad>").ids
    assert 0 not in load_tokenizer(tokenizer.to_str()).encode("<pad>").ids
    assert tokenizer.encode("").ids == tokenizer.encode("  ").ids == []


def test_case_white_space_and_spelling_of_accents_make_no_difference():
    tokenizer = train_tokenizer(CAPTIONS, 4096)
    for one, other in (("A Red  circle\n", "a red circle"), ("e\u0301", "\u00e9"), ("CIRCLE", " circle")):
        assert tokenizer.encode(one).ids == tokenizer.encode(other).ids


@pytest.mark.slow
def test_equal_captions_give_equal_tokenizers_in_every_process():
    program = (
        "import sys; from diffunet.data.captions import train_tokenizer\n"
        "captions = [f'a {i % 7} of {i % 11} {chr(97 + i % 26)}{chr(97 + i % 23)}' for i in range(500)]\n"
        "sys.stdout.write(train_tokenizer(captions, 400).to_str())"
    )
    runs = [subprocess.run([sys.executable, "-c", program], capture_output=True, check=True) for _ in range(3)]
    assert len({hashlib.sha256(run.stdout).hexdigest() for run in runs}) == 1
    assert len(runs[0].stdout) > 1000


def test_damaged_tokenizer_is_a_value_error():
    with pytest.raises(ValueError):
        load_tokenizer("{}")


def test_length_covers_all_but_one_caption_in_two_hundred():
    assert length_of([5] * 199 + [90]) == 5
    assert length_of([5] * 198 + [90] * 2) == 90
    assert length_of([0]) == 1
    assert length_of([500]) == 128


def test_sequences_are_padded_as_torch_pads_them():
    rows = [torch.randn(n, 2) for n in (3, 0, 1, 5)]
    offsets = torch.tensor([0, 3, 3, 4, 9])
    padded = Sequences(torch.cat(rows), offsets).padded(torch.tensor([3, 0, 1, 2, 3]), 5, float("nan"))
    expected = torch.nn.utils.rnn.pad_sequence([rows[i] for i in (3, 0, 1, 2, 3)], True, float("nan"))
    torch.testing.assert_close(padded, expected, equal_nan=True, atol=0, rtol=0)
    assert Sequences.of([[], [4, 5, 6]]).padded(torch.tensor([1, 0]), 2, 0).tolist() == [[4, 5], [0, 0]]


def test_missing_and_empty_captions_are_absent():
    captions = read_captions(["one", None, "", ["two", "", None, " three "], []], "here")
    assert captions == [["one"], [], [], ["two", "three"], []]
    text = column(captions)
    assert [text.captions(index) for index in range(5)] == captions
    prepared = text.prepare(text[torch.tensor([1, 2, 4])], IMAGE[:3], BatchRNG())
    assert prepared.eq(0).all()


@pytest.mark.parametrize("values", [["a", 3], [["a"], [b"b"]], [{"a": 1}], [True]])
def test_column_of_another_type_is_refused(values):
    with pytest.raises(UserError, match="here contains no captions .row"):
        read_captions(values, "here")


def test_column_of_empty_captions_is_refused():
    with pytest.raises(UserError, match="here has only empty captions"):
        read_captions([None, "", [" "]], "here")


def test_each_caption_of_an_image_is_chosen_equally_often():
    text = column([["one"], ["two", "three", "four"], [], ["five", "six"]])
    value = text[torch.arange(4)]
    chosen = [text.words(value, IMAGE, rng(step)) for step in range(3000)]
    for turn, known in zip(
        zip(*chosen, strict=True), (["one"], ["two", "three", "four"], [None], ["five", "six"]), strict=True
    ):
        counts = Counter(turn)
        assert counts.keys() == set(known)
        expected = 3000 / len(known)
        assert all(abs(count - expected) < 4 * expected**0.5 for count in counts.values())


def test_words_are_those_whose_tokens_are_prepared():
    text = column([["one"], ["two", "three", "four"], [], ["five", "six"]])
    value = text[torch.arange(4)]
    for step in range(5):
        words = text.words(value, IMAGE, rng(step))
        caption = torch.tensor([text.distinct.index(word or "") for word in words])
        assert torch.equal(text.prepare(value, IMAGE, rng(step)), text.tokens.padded(caption, 3, 0))


def test_choice_and_word_dropout_depend_on_the_position_only():
    text = column([["one", "two"], ["two", "three", "four"], ["six"], ["five", "six"]], word_dropout=0.5)
    whole = text.prepare(text[torch.arange(4)], IMAGE, rng(3))
    parts = [text.prepare(text[torch.arange(4)[p]], IMAGE[p], rng(3, p)) for p in (slice(0, 1), slice(1, 4))]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole, text.prepare(text[torch.arange(4)], IMAGE, rng(4)))


def test_nothing_is_drawn_for_one_caption_per_image():
    text, one, other = column([["one"], ["two"], [], ["one"]]), rng(), rng()
    text.prepare(text[torch.arange(4)], IMAGE, one)
    assert torch.equal(one.uniform_like(IMAGE), other.uniform_like(IMAGE))


def test_word_dropout_drops_each_token_with_its_probability():
    tokens = Sequences.of([[], [7] * 50])
    text = TextColumn.of([["one"]] * 400, ["", "one"], tokens, length=50, word_dropout=0.1)
    batch = text.prepare(text[torch.arange(400)], torch.zeros(400, 1, 2, 2), BatchRNG(torch.Generator().manual_seed(0)))
    assert set(batch.unique().tolist()) == {0, 7}
    assert abs(batch.eq(0).double().mean() - 0.1) < 4 * (0.1 * 0.9 / 20000) ** 0.5


def test_selected_images_keep_their_captions():
    text = column([["one"], ["two", "three"], [], ["four"]])
    chosen = text.select(torch.tensor([3, 1]))
    assert [chosen.captions(index) for index in range(2)] == [["four"], ["two", "three"]]
    assert chosen.digest() == column([["four"], ["two", "three"]]).digest()
    assert chosen.digest() != text.digest()


def test_frozen_tokens_are_padded_with_nan():
    tokens = Sequences(torch.ones(2, 4).half(), torch.tensor([0, 0, 2]))
    text = TextColumn.of([["one"], []], ["", "one"], tokens, length=3)
    batch = text.prepare(text[torch.arange(2)], IMAGE[:2], BatchRNG())
    assert batch.dtype == torch.float16
    assert batch.isnan().any(2).tolist() == [[False, False, True], [True, True, True]]


@pytest.mark.parametrize("caption, expected", [
    ("a seven leaning Right", True), ("the leftmost cup", True), ("turning counterclockwise", True),
    ("a bright copyright mark, left-handed", True), ("bright delight", False), ("", False),
])  # fmt: skip
def test_sides_are_recognized_as_words(caption, expected):
    assert mentions_sides(["a cat", caption]) is expected

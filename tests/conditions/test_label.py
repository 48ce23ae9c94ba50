"""Class labels: read from columns, parsed from words, absent where missing."""

import pytest
import torch

from diffunet.conditions.label import LabelConfig, class_labels
from diffunet.core.errors import UserError
from diffunet.data.sources import Table
from diffunet.models.conditioning import LabelEmbedding

NAMES = ("cat", "dog", "1")
LABEL = LabelConfig(num_classes=3, class_names=NAMES)


def words(given):
    """Return the class indices of what a user gives."""
    return [value.word for value in LABEL.parse("label", given)]


def test_labels_are_parsed_by_name_or_number():
    assert words("none") == [None]
    assert words("dog,0") == [1, 0]
    assert words(["dog", None, 0]) == [1, None, 0]
    assert words(0) == [0]
    assert words("1") == [2]  # a name takes precedence
    assert words(1) == words([1]) == [1]
    with pytest.raises(UserError, match=r"label: dgo is not one of the 3 classes: cat, dog, 1; did you mean dog\?"):
        words("dgo")
    with pytest.raises(UserError, match="no classes"):
        LabelConfig().parse("label", "0")


def test_missing_labels_are_absent():
    names, classes = class_labels(Table("X", {"kind": ["b", None, "a"]}), "kind", "kind")
    assert (names, classes.tolist()) == (("a", "b"), [1, -1, 0])
    embedding = LabelEmbedding(4, 2)
    vectors = embedding(classes).vector
    assert torch.equal(vectors[1], embedding(None).vector[0])
    assert torch.equal(vectors[0], embedding.table.weight[1])
    dropped = embedding(classes, torch.tensor([False, True, True])).vector
    assert torch.equal(dropped[0], vectors[1])
    assert torch.equal(dropped[2], vectors[2])


def test_a_batch_with_absent_labels_is_stacked():
    stacked = LABEL.stack(LABEL.parse("label", ["dog", None]))
    assert stacked.tolist() == [1, -1]
    assert LABEL.stack(LABEL.parse("label", "none")) is None

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import small_unet

from diffunet.conditions.vector import VectorConfig
from diffunet.core.errors import UserError
from diffunet.core.rng import BatchRNG
from diffunet.data.digits import digit_table
from diffunet.data.sources import Table
from diffunet.models.conditioning import VectorEmbedding

PLANTS = Table(
    "plants",
    {
        "ph": [7, 6.5, None, 8.0],
        "height": [100.0, 300.0, 200.0, math.nan],
        "pose": [[1, 2, 3], [4, 5, 6], None, [7, 8, 12]],
        "name": ["a", "b", None, "c"],
        "same": [0.1] * 4,
        "empty": [None] * 4,
        "uneven": [[1], [1, 2], [], [3]],
        "endless": [1.0, math.inf, 0.0, 0.0],
    },
)


def read(column=None, name="scan", table=PLANTS, **settings):
    return VectorConfig(column=column, **settings).read(name, table, None)


def parse(config, words):
    return config.parse("scan", words, Path(), (8, 8))


def test_numbers_are_standardized():
    config, column = read(["ink", "slant"], table=digit_table())
    assert column.values.dtype == torch.float32
    np.testing.assert_allclose(column.values.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(column.values.std(0, correction=0), 1, atol=1e-6)
    raw = np.stack([digit_table().values(name) for name in ("ink", "slant")], axis=1)
    np.testing.assert_allclose(config.mean, raw.mean(0))
    np.testing.assert_allclose(config.std, raw.std(0))
    assert config.width == 2


def test_image_without_one_of_its_numbers_has_none_and_counts_in_no_statistic():
    config, column = read(("ph", "height"))
    assert column.values.isnan().any(1).tolist() == [False, False, True, True]
    np.testing.assert_allclose(config.mean, [6.75, 200])
    np.testing.assert_allclose(column.values[:2], [[1, -1], [-1, 1]], atol=1e-6)


def test_lists_are_vectors_and_the_condition_is_its_own_column():
    config, column = read(name="pose")
    np.testing.assert_allclose(config.mean, [4, 5, 7])
    assert column.values.isnan().all(1).tolist() == [False, False, True, False]
    assert read(["pose", "ph"])[0].width == 4
    assert read(name="weight") is None


def test_words_of_a_column_are_the_numbers_that_parse_takes():
    image, rng = torch.zeros(4, 1, 8, 8), BatchRNG()
    config, column = read(("ph", "height"))
    words = column.words(column[torch.arange(4)], image, rng)
    assert words[2:] == [None, None]
    np.testing.assert_allclose(words[:2], [[7, 100], [6.5, 300]], rtol=1e-6)
    parsed = torch.stack([value.tensor for value in parse(config, words[:2])])
    torch.testing.assert_close(parsed, column.values[:2])
    _, single = read("height")
    assert single.words(single[torch.arange(4)], image, rng) == [[100], [300], [200], None]


def test_constant_is_zero_with_standard_deviation_1():
    config, column = read("same")
    assert config.std == (1.0,)
    np.testing.assert_allclose(column.values, 0, atol=1e-6)


def test_completed_config_standardizes_other_data_alike():
    config, _ = read("height")
    other = Table("other", {"height": [200.0, 1200.0]})
    again, column = config.read("scan", other, None)
    assert again == config
    np.testing.assert_allclose(column.values[:, 0], (np.array([200, 1200]) - config.mean) / config.std, rtol=1e-6)
    with pytest.raises(UserError, match="conditions.scan.width: 1 numbers expected"):
        config.read("scan", Table("other", {"height": [[1, 2], [3, 4]]}), None)


@pytest.mark.parametrize(
    ("column", "problem"),
    [
        ("hieght", "conditions.scan.column: no column hieght in plants; did you mean height"),
        (("ph", "nome"), "no column nome in plants; did you mean name"),
        ("name", "column name of plants contains 'a'; choose a column of numbers"),
        ("empty", "empty of plants has no values"),
        ("uneven", "has lists of 1 to 2 numbers; make them equally long"),
        ("endless", "has infinite values"),
    ],
)
def test_unusable_column_is_one_line(column, problem):
    with pytest.raises(UserError, match=problem) as error:
        read(column)
    assert "\n" not in str(error.value)


def test_parsed_numbers_are_standardized_and_recorded_as_given():
    config, _ = read(("ph", "height"))
    (value,) = parse(config, "7.0, 100")
    np.testing.assert_allclose(value.tensor, [1, -1], atol=1e-6)
    assert value.word == [7.0, 100.0]
    for words in ([7, 100], [[7, 100]], ["7, 100"]):
        assert [v.word for v in parse(config, words)] == [[7, 100]]
    assert [v.word for v in parse(config, "7, 100; none; 6, 200")] == [[7, 100], None, [6, 200]]
    assert [v.tensor for v in parse(config, [None])] == [None]
    single, _ = read("height")
    assert [v.word for v in parse(single, [100, 2e2, None])] == [[100], [200], None]
    assert [v.word for v in parse(single, 150.0)] == [[150]]


@pytest.mark.parametrize(
    "words", ["7.1", "7, 100, 3", "7, high", "7, nan", "7, inf", "", [7.0], [[1, 2, 3]], [True, 1]]
)
def test_words_that_are_no_vector_are_one_line_with_the_columns(words):
    config, _ = read(("ph", "height"))
    with pytest.raises(UserError, match=r"^scan: not 2 numbers \(ph, height\) \(got .*\); give 6.75, 200"):
        parse(config, words)


def test_config_survives_yaml_and_builds_its_embedding():
    config, _ = read(["ph", "height"])
    assert VectorConfig(**config.model_dump(mode="json")) == config
    assert config.build_embedding("scan", small_unet()).mlp[0].in_features == 2
    with pytest.raises(ValueError, match="width"):
        VectorConfig().build_embedding("scan", small_unet())


def test_row_with_a_nan_is_absent_and_its_gradient_finite():
    embedding = VectorEmbedding(8, width=2)
    torch.nn.init.normal_(embedding.nothing)
    numbers = torch.tensor([[0.5, -1.0], [math.nan, 2.0], [math.nan, math.nan]], requires_grad=True)
    vector = embedding(numbers).vector
    assert torch.equal(vector[1:], embedding(None).vector.expand(2, -1))
    torch.testing.assert_close(vector[:1], embedding(numbers[:1]).vector)
    vector.square().sum().backward()
    gradients = [numbers.grad, *(parameter.grad for parameter in embedding.parameters())]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert all(gradient.abs().sum() > 0 for gradient in gradients)
    dropped = embedding(numbers, torch.tensor([False, True, True])).vector
    assert torch.equal(dropped, embedding(None).vector.expand(3, -1))
    assert list(embedding.state_dict()) == ["nothing", "mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias"]

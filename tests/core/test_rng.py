import torch

from diffunet.core.rng import EpochShuffle, BatchRNG, seed_for


def test_every_example_once_an_epoch_in_a_fresh_order():
    order = EpochShuffle(length=10, batch_size=4, seed=0)
    places = torch.cat([order.batch(step) for step in range(5)])
    first, second = places[:10], places[10:]
    assert first.sort().values.tolist() == second.sort().values.tolist() == list(range(10))
    assert first.tolist() != second.tolist()


def test_a_batch_larger_than_the_data_spans_epochs():
    counts = EpochShuffle(length=3, batch_size=9, seed=0).batch(0).bincount()
    assert counts.tolist() == [3, 3, 3]


def test_order_is_a_function_of_the_seed():
    assert EpochShuffle(100, 10, 0).batch(3).tolist() == EpochShuffle(100, 10, 0).batch(3).tolist()
    assert EpochShuffle(100, 10, 0).batch(3).tolist() != EpochShuffle(100, 10, 1).batch(3).tolist()


def draws(shares: int) -> tuple[torch.Tensor, torch.Tensor]:
    """All draws of step 7, made in `shares` shares of a batch of 8."""
    normal, uniform = [], []
    for share in range(shares):
        size = 8 // shares
        positions = slice(share * size, (share + 1) * size)
        rng = BatchRNG.at(0, 7, positions, 8, torch.device("cpu"))
        x = torch.empty(size, 3, 4)
        normal.append(rng.normal_like(x))
        uniform.append(rng.uniform_like(x))
    return torch.cat(normal), torch.cat(uniform)


def test_draws_do_not_depend_on_how_the_batch_is_shared():
    for one, several in zip(draws(1), draws(4), strict=True):
        assert torch.equal(one, several)


def test_seeds_of_different_keys_differ():
    keys = [(seed, step, *more) for seed in range(3) for step in range(100) for more in ((), (1,), (2,))]
    assert len({seed_for(*key) for key in keys}) == len(keys)

import torch

from diffunet.core.rng import BatchRNG, EpochShuffle, fixed_subset, seed_for


def test_each_epoch_has_every_example_once_in_a_new_order():
    order = EpochShuffle(length=10, batch_size=4, seed=0)
    indices = torch.cat([order.batch(step) for step in range(5)])
    first, second = indices[:10], indices[10:]
    assert first.sort().values.tolist() == second.sort().values.tolist() == list(range(10))
    assert first.tolist() != second.tolist()


def test_a_batch_larger_than_the_data_spans_epochs():
    counts = EpochShuffle(length=3, batch_size=9, seed=0).batch(0).bincount()
    assert counts.tolist() == [3, 3, 3]


def test_order_is_a_function_of_the_seed():
    assert EpochShuffle(100, 10, 0).batch(3).tolist() == EpochShuffle(100, 10, 0).batch(3).tolist()
    assert EpochShuffle(100, 10, 0).batch(3).tolist() != EpochShuffle(100, 10, 1).batch(3).tolist()


def random_numbers(shares: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the normal and uniform numbers of step 7 for a batch of 8, generated in `shares` equal shares."""
    normal, uniform = [], []
    for share in range(shares):
        size = 8 // shares
        positions = slice(share * size, (share + 1) * size)
        rng = BatchRNG.at(0, 7, positions, 8, torch.device("cpu"))
        x = torch.empty(size, 3, 4)
        normal.append(rng.normal_like(x))
        uniform.append(rng.uniform_like(x))
    return torch.cat(normal), torch.cat(uniform)


def test_random_numbers_do_not_depend_on_how_the_batch_is_divided():
    for one, several in zip(random_numbers(1), random_numbers(4), strict=True):
        assert torch.equal(one, several)


def test_seeds_of_different_keys_differ():
    keys = [(seed, step, *more) for seed in range(3) for step in range(100) for more in ((), (1,), (2,))]
    assert len({seed_for(*key) for key in keys}) == len(keys)


def test_a_fixed_subset_depends_only_on_its_arguments():
    assert fixed_subset(100, 10).tolist() == fixed_subset(100, 10).tolist()
    assert fixed_subset(100, 10).tolist() != fixed_subset(100, 10, seed=1).tolist()
    assert fixed_subset(5, 10).sort().values.tolist() == list(range(5))

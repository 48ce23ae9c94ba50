import torch
from diffusers.models.embeddings import get_timestep_embedding

from diffunet.conditioning import Conditioning, LabelEmbedding, TimeEmbedding


def test_sum_of_conditionings():
    a, b = torch.rand(2, 4), torch.rand(1, 4)
    tokens = torch.rand(2, 3, 5)
    both = Conditioning(vector=a, tokens=tokens) + Conditioning(vector=b, tokens=tokens[:, :1])
    assert torch.equal(both.vector, a + b)
    assert both.tokens.shape == (2, 4, 5)
    assert both.planes is None
    assert Conditioning() + Conditioning() == Conditioning()


def test_planes_stack():
    planes = torch.rand(2, 1, 4, 4)
    assert (Conditioning(planes=planes) + Conditioning(planes=planes)).planes.shape == (2, 2, 4, 4)


def test_sinusoids_are_those_of_diffusers():
    t = torch.tensor([0, 1, 17, 999])
    for shift in (0, 1):
        embedding = TimeEmbedding(vector_dim=32, channels=32, freq_shift=shift)
        embedding.mlp = torch.nn.Sequential(torch.nn.Linear(32, 32))
        torch.nn.init.eye_(embedding.mlp[0].weight)
        torch.nn.init.zeros_(embedding.mlp[0].bias)
        theirs = get_timestep_embedding(t, 32, flip_sin_to_cos=True, downscale_freq_shift=shift)
        torch.testing.assert_close(embedding(t).vector, theirs, atol=1e-4, rtol=0)


def test_one_time_for_the_whole_batch():
    embedding = TimeEmbedding(8, 8)
    one, several = embedding(torch.tensor(5)).vector, embedding(torch.tensor([5, 9])).vector
    torch.testing.assert_close(one, several[:1])


def test_a_label_that_is_withheld_is_a_row_of_its_own():
    embedding = LabelEmbedding(vector_dim=4, classes=3)
    label = torch.tensor([0, 1, 2])
    nothing = embedding(None).vector
    told = embedding(label, told=torch.tensor([True, False, True])).vector
    assert torch.equal(told[1:2], nothing)
    assert torch.equal(told[[0, 2]], embedding(label).vector[[0, 2]])
    assert not torch.isclose(embedding(label).vector, nothing).all(dim=1).any()

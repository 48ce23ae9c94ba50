"""Muon beside the singular value decomposition, torch's own, and an interrupted training."""

import shutil
from pathlib import Path

import pytest
import torch
from helpers import checkpoint, run, train_small
from torch import nn

from diffunet.training.muon import MOMENTUM, RMS, Muon, matrices_of, orthogonalized


@pytest.mark.parametrize("shape", [(20, 50), (50, 20), (32, 32)])
def test_all_singular_values_become_about_one_and_the_vectors_stay(shape):
    u, _, vh = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    matrix = 7 * u @ torch.logspace(0, -1.5, min(shape), dtype=torch.float64).diag() @ vh
    turned = u.T @ orthogonalized(matrix) @ vh.T
    values = turned.diagonal()
    assert (turned - values.diag()).abs().max() < 1e-9
    assert values.min() > 0.65
    assert values.max() < 1.25


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 16, 3)
        self.inner = nn.Conv2d(16, 24, 3)
        self.norm = nn.GroupNorm(4, 24)
        self.linear = nn.Linear(24, 32)
        self.table = nn.Embedding(20, 32)
        self.last = nn.Linear(32, 2)


def test_only_inner_matrices_are_orthogonalized():
    net = Net()
    assert [id(w) for w in matrices_of(net)] == [id(net.inner.weight), id(net.linear.weight)]
    net.linear.weight.requires_grad_(False)
    assert [id(w) for w in matrices_of(net)] == [id(net.inner.weight)]
    groups = Muon(net, 0.1, (0.9, 0.999), 0.0).param_groups
    trained = [id(w) for group in groups for w in group["params"]]
    assert sorted(trained) == sorted(id(w) for w in net.parameters() if w.requires_grad)


def test_a_step_is_that_of_torch():
    """Which takes matrices only, and computes in bf16."""
    theirs = pytest.importorskip("torch.optim._muon", reason="torch older than 2.9")
    ours, other = nn.Linear(40, 24, bias=False), nn.Linear(40, 24, bias=False)
    other.load_state_dict(ours.state_dict())
    begun = ours.weight.detach().clone()
    one = Muon(ours, 0.1, (0.9, 0.999), weight_decay=0.1)
    two = theirs.Muon(other.parameters(), lr=0.1, weight_decay=0.1, momentum=MOMENTUM, adjust_lr_fn="match_rms_adamw")
    for step in range(3):
        gradient = torch.randn(24, 40, generator=torch.Generator().manual_seed(step))
        for layer, optimizer in ((ours, one), (other, two)):
            layer.weight.grad = gradient.clone()
            optimizer.step()
    moved = (ours.weight - begun).norm()
    assert (ours.weight - other.weight).norm() < 0.02 * moved
    assert 0.1 * RMS < float((ours.weight.detach() - begun).square().mean().sqrt()) < 3 * 0.1 * RMS * 1.3


def test_the_rest_is_adamw_and_a_broken_gradient_changes_nothing():
    net, twin = Net(), Net()
    twin.load_state_dict(net.state_dict())
    muon = Muon(net, 0.01, (0.9, 0.99), weight_decay=0.1)
    adamw = torch.optim.AdamW(twin.parameters(), lr=0.01, betas=(0.9, 0.99), weight_decay=0.1, fused=True)
    for number, (one, other) in enumerate(zip(net.parameters(), twin.parameters(), strict=True)):
        one.grad = torch.randn(one.shape, generator=torch.Generator().manual_seed(number))
        other.grad = one.grad.clone()
    muon.step()
    adamw.step()
    assert torch.equal(net.table.weight, twin.table.weight)
    assert torch.equal(net.first.weight, twin.first.weight)
    assert not torch.equal(net.inner.weight, twin.inner.weight)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    momentum = muon.state[net.inner.weight]["momentum_buffer"].clone()
    for weight in net.parameters():
        weight.grad = torch.full_like(weight, torch.nan)
    muon.found_inf = torch.tensor(1.0)
    muon.step()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(muon.state[net.inner.weight]["momentum_buffer"], momentum)


def test_a_training_with_muon_is_resumed_to_the_byte(small):
    train_small("--train.optimizer", "muon", "--train.preview_every", "100", "--sample.steps", "2")
    expected = checkpoint(Path("run"))
    shutil.rmtree("run/checkpoints/step_00000012")
    assert run("train", "--resume", "run") == 0
    assert checkpoint(Path("run")) == expected

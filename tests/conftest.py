"""Fixtures: seeds, fp32, and a working folder and caches for the tests alone."""

import os
from pathlib import Path

import pytest
import torch
from helpers import SMALL_PREDICTOR, write_pairs

from stress.program import SMALL_RUN

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # as many processes as cores already


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _fp32(monkeypatch):
    """Compare with other libraries in fp32, also where the CPU has bf16."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)


@pytest.fixture
def in_a_new_folder(tmp_path, monkeypatch):
    """Return the working directory of one test."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """Keep `datasets` and torch's compiler out of the user's caches."""
    import datasets

    cache = tmp_path_factory.mktemp("cache")
    datasets.config.HF_DATASETS_CACHE = cache
    os.environ["HF_DATASETS_CACHE"] = str(cache)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache / "compiled")


@pytest.fixture
def small(in_a_new_folder):
    """Return the working directory of one test, with small.yaml."""
    Path("small.yaml").write_text(SMALL_RUN)
    return in_a_new_folder


@pytest.fixture
def small_predictor(in_a_new_folder):
    """Return the working directory of one test, with predictor.yaml and the folder `pairs`."""
    Path("predictor.yaml").write_text(SMALL_PREDICTOR)
    write_pairs(Path("pairs"))
    return in_a_new_folder

import resource

import pytest
import torch

from diffunet.core.errors import UserError, describe_oserror
from diffunet.core.storage import (
    CHECKSUMS,
    append_line,
    atomic_directory,
    atomic_write,
    load_json,
    load_strictly,
    load_tensors,
    save_tensors,
    sha256_of_tensors,
)


def test_a_directory_is_complete_or_absent(tmp_path):
    with pytest.raises(RuntimeError), atomic_directory(tmp_path / "step") as folder:
        (folder / "half").write_text("...")
        raise RuntimeError("power failure")
    assert not (tmp_path / "step").exists()
    with atomic_directory(tmp_path / "step") as folder:
        (folder / "new").write_text("1")
    with atomic_directory(tmp_path / "step") as folder:
        assert (tmp_path / "step" / "new").read_text() == "1"  # until the new one is complete
        (folder / "newer").write_text("2")
    assert {path.name for path in (tmp_path / "step").iterdir()} == {"newer", CHECKSUMS}
    assert [path.name for path in tmp_path.iterdir()] == ["step"]


def test_a_file_is_complete_or_unchanged(tmp_path):
    path = tmp_path / "weights"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write_text("ne")
        raise RuntimeError("power failure")
    assert path.read_text() == "old"
    with atomic_write(path) as file:
        file.write_text("new")
    assert path.read_text() == "new"


def test_a_line_is_appended_completely_or_not_at_all(tmp_path):
    """With a limit of 100 bytes per file only ten bytes of the second line are written."""
    path = tmp_path / "log"
    append_line(path, "x" * 89)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError, match="File too large") as error:
            append_line(path, "y" * 50)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert describe_oserror(error.value) == f"{path}: File too large"
    assert path.read_text() == "x" * 89 + "\n"


def test_tensors_round_trip(tmp_path):
    tensors = {"a": torch.randn(3, 2), "b": torch.arange(4)}
    save_tensors(tmp_path / "t.safetensors", tensors)
    loaded = load_tensors(tmp_path / "t.safetensors")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


def test_error_names_the_damaged_file(tmp_path):
    path = tmp_path / "t.safetensors"
    with pytest.raises(UserError, match=r"t.safetensors: missing"):
        load_tensors(path)
    save_tensors(path, {"a": torch.randn(100)})
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UserError, match=r"t.safetensors: damaged"):
        load_tensors(path)
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(UserError, match=r"state.json: damaged"):
        load_json(tmp_path / "state.json")


def test_error_names_the_weights_that_do_not_match():
    layer = torch.nn.Linear(3, 2)
    fitting = {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}
    for tensors, message in (
        ({"weight": fitting["weight"]}, "bias is missing"),
        (fitting | {"gain": torch.zeros(1)}, "gain is not part of this network"),
        (fitting | {"weight": torch.zeros(3, 3)}, r"weight has shape \(3, 3\) instead of \(2, 3\)"),
    ):
        before = layer.weight.clone()
        with pytest.raises(UserError, match=message):
            load_strictly(layer, tensors, "file")
        assert torch.equal(layer.weight, before)
    load_strictly(layer, fitting, "file")
    assert not layer.weight.any()


def test_hash_of_weights_depends_on_values_names_and_precision():
    first, second = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    assert sha256_of_tensors(first.state_dict()) != sha256_of_tensors(second.state_dict())
    second.load_state_dict(first.state_dict())
    assert sha256_of_tensors(first.state_dict()) == sha256_of_tensors(second.state_dict())
    assert sha256_of_tensors(first.state_dict()) != sha256_of_tensors(torch.nn.Sequential(first).state_dict())
    assert sha256_of_tensors(first.half().state_dict()) != sha256_of_tensors(second.state_dict())

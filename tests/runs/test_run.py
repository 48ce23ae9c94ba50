import pytest
import torch
from helpers import randomised, small_unet

from diffunet.runs.run import WEIGHTS, Run
from diffunet.runs.config import Config
from diffunet.models.denoiser import ConditionsConfig, Denoiser
from diffunet.core.errors import UserError
from diffunet.core.storage import load_tensors, save_tensors

CONFIG = Config(unet=small_unet(), conditions=ConditionsConfig(classes=2, class_names=("a", "b")))


@pytest.fixture
def run(tmp_path):
    run = Run(tmp_path / "run")
    run.begin(CONFIG)
    run.publish(randomised(Denoiser.from_config(CONFIG.unet, CONFIG.conditions)))
    return run


def test_a_run_knows_itself(run):
    config = run.config()
    assert config == CONFIG
    denoiser = run.denoiser()
    assert not denoiser.training
    published = load_tensors(run.folder / "model" / WEIGHTS)
    assert all(torch.equal(published[name], value) for name, value in denoiser.state_dict().items())


def test_a_run_is_not_overwritten_without_being_told(run, tmp_path):
    with pytest.raises(UserError, match=r"already holds a run; --resume .* --overwrite"):
        run.check_not_overwriting(False)
    run.check_not_overwriting(True)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.png").touch()
    for overwrite in (False, True):
        with pytest.raises(UserError, match="photos: exists and is not a run folder"):
            Run(tmp_path / "photos").check_not_overwriting(overwrite)


def test_weights_that_do_not_match_are_named(run):
    path = run.folder / "model" / WEIGHTS
    tensors = load_tensors(path)
    for changed, message in (
        ({k: v for k, v in tensors.items() if k != "unet.stem.bias"}, "unet.stem.bias is missing"),
        (tensors | {"unet.extra": torch.zeros(1)}, "unet.extra is not part"),
        (tensors | {"unet.stem.bias": torch.zeros(3)}, r"unet.stem.bias has shape \(3,\) instead of \(8,\)"),
    ):
        save_tensors(path, changed)
        with pytest.raises(UserError, match=f"{WEIGHTS}: {message}"):
            run.denoiser()
    path.unlink()
    with pytest.raises(UserError, match="no checkpoint yet"):
        run.denoiser()


def test_a_folder_that_is_no_run_is_named_with_the_nearest(run, tmp_path):
    with pytest.raises(UserError, match=r"runn: no such run folder; did you mean run\?"):
        Run(tmp_path / "runn").config()
    with pytest.raises(UserError, match="has no config.yaml"):
        Run(tmp_path).config()
    (run.folder / "config.yaml").write_text("train: {stepz: 1}")
    with pytest.raises(UserError, match=r"config.yaml:1: train.stepz: unknown key; did you mean steps\?"):
        run.config()

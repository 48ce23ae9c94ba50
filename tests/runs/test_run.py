import pytest
import torch
from helpers import randomized, small_unet

from diffunet.conditions.label import LabelConfig
from diffunet.core.errors import UserError
from diffunet.core.storage import load_tensors, save_tensors
from diffunet.models.denoiser import Denoiser
from diffunet.runs.config import Config
from diffunet.runs.run import WEIGHTS, Run, load_run

CONFIG = Config(unet=small_unet(), conditions={"label": LabelConfig(num_classes=2, class_names=("a", "b"))})


@pytest.fixture
def run(tmp_path):
    run = Run(tmp_path / "run")
    run.create(CONFIG)
    run.publish(randomized(Denoiser.from_config(CONFIG.unet, CONFIG.conditions, CONFIG.time)))
    return run


def test_config_and_weights_round_trip(run):
    config = run.config()
    assert config == CONFIG
    denoiser = run.denoiser()
    assert not denoiser.training
    published = load_tensors(run.folder / "model" / WEIGHTS)
    assert all(torch.equal(published[name], value) for name, value in denoiser.state_dict().items())


def test_a_run_is_replaced_only_with_overwrite(run, tmp_path):
    with pytest.raises(UserError, match=r"already holds a run; --resume .* --overwrite"):
        run.check_not_overwriting(False)
    run.check_not_overwriting(True)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.png").touch()
    for overwrite in (False, True):
        with pytest.raises(UserError, match="photos: exists and is not a run folder"):
            Run(tmp_path / "photos").check_not_overwriting(overwrite)


def test_error_names_the_weights_that_do_not_match(run):
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


def test_error_for_a_missing_run_suggests_the_closest_name(run, tmp_path):
    with pytest.raises(UserError, match=r"runn: no such run folder; did you mean run\?"):
        Run(tmp_path / "runn").config()
    with pytest.raises(UserError, match="no config.yaml, so not a run folder"):
        Run(tmp_path).config()
    (run.folder / "config.yaml").write_text("train: {stepz: 1}")
    with pytest.raises(UserError, match=r"config.yaml:1: train.stepz: unknown key; did you mean steps\?"):
        run.config()


def test_a_run_is_new_until_it_has_weights_or_a_checkpoint(run, tmp_path):
    assert not run.is_new
    (run.folder / "model" / WEIGHTS).unlink()
    assert run.is_new
    (run.folder / "checkpoints/step_00000001").mkdir(parents=True)
    assert not run.is_new


def test_the_lock_keeps_a_second_training_out(run, monkeypatch):
    monkeypatch.setattr("diffunet.runs.run.LOCK_SECONDS", 0.05)
    message = "run: another process is training here; stop it first"
    with run.lock(), pytest.raises(UserError, match=message), Run(run.folder).lock():
        pass
    with Run(run.folder).lock():
        pass


def test_sample_returns_images_seeds_and_classes(run):
    config = CONFIG.replace(data={"resolution": 8, "channels": 3, "bit_depth": 8})
    run.create(config)
    batch = load_run(run.folder).sample(num_images=3, steps=2, batch_size=2, seed=5, conditions={"label": "b"})
    assert batch.pixels.shape == (3, 3, 8, 8)
    assert batch.seeds == [5, 6, 7]
    assert batch.conditions == {"label": [1, 1, 1]}
    one = load_run(run.folder).sample(num_images=1, steps=2, seed=6, conditions={"label": 1})
    assert torch.equal(one.pixels[0], batch.pixels[1])
    for settings, message in (
        ({"stps": 2}, "stps: unknown key; did you mean steps"),
        ({"conditions": {"label": "c"}}, "label: c is not one of the 2 classes"),
        ({"conditions": {"lable": "b"}}, "lable: not one of label; did you mean label"),
        ({"sampler": "dpm+"}, "did you mean dpm"),
    ):
        with pytest.raises(UserError, match=message):
            load_run(run.folder).sample(**settings)


def test_a_run_of_another_task_is_not_a_run_of_images(run):
    (run.folder / "run.json").write_text('{"format": 2, "task": "classification"}')
    with pytest.raises(UserError, match="run: a run of classification, not of generation"):
        load_run(run.folder)

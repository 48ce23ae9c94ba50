import json
import math
import shutil
import subprocess
import time

import pytest
import torch
from line_fit import Fit, trainer

from diffunet.core.errors import UserError
from diffunet.core.storage import load_tensors
from diffunet.training.checkpoint import is_intact, list_checkpoints
from diffunet.training.config import Due, TrainConfig
from diffunet.training.ema import list_snapshots, std_to_gamma
from diffunet.training.trainer import NON_FINITE_LIMIT

SPEED = {"images_per_second", "minutes_left", "preview_share"}


def states(folder, step):
    checkpoint = folder / "checkpoints" / f"step_{step:08d}"
    return {file.name: file.read_bytes() for file in checkpoint.iterdir()}


def log(folder):
    """Return log.jsonl without speeds and times."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in SPEED} for line in lines]


def fit_and_record(run):
    """Train, and return the first layer's weights before the first step and after each."""
    weights = [run.placement.module[0].weight.detach().clone()]
    step = run._train_step

    def recorded(micro_batches):
        step(micro_batches)
        weights.append(run.placement.module[0].weight.detach().clone())

    run._train_step = recorded
    run.fit()
    return weights


def test_resumed_run_equals_uninterrupted_run(tmp_path):
    trainer(tmp_path / "uninterrupted", preview_every=6).fit()
    first = trainer(tmp_path / "resumed", preview_every=6)
    first.config = first.config.model_copy(update={"steps": 6})  # as if stopped there
    first.fit()
    second = trainer(tmp_path / "resumed", preview_every=6)
    second.resume()
    assert second.step == 6
    second.fit()
    assert states(tmp_path / "uninterrupted", 12) == states(tmp_path / "resumed", 12)
    assert log(tmp_path / "uninterrupted") == log(tmp_path / "resumed")


class InStages(Fit):
    """A loss whose scale is the number of the step that it is for, and which records those numbers."""

    def __init__(self, steps, progress=0.0, seen=None):
        super().__init__()
        self.steps, self.progress, self.seen = steps, progress, [] if seen is None else seen

    def at(self, progress):
        return InStages(self.steps, progress, self.seen)

    def loss(self, model, rng, x):
        self.seen.append(round(self.progress * self.steps))
        return {"loss": (1 + self.progress) * super().loss(model, rng, x)["loss"]}


def test_a_resumed_objective_is_at_the_same_progress(tmp_path):
    straight, resumed = InStages(12), InStages(12)
    trainer(tmp_path / "straight", straight, gradient_accumulation_steps=2).fit()
    assert straight.seen == [step for step in range(12) for _ in range(2)]
    shutil.copytree(tmp_path / "straight", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "step_00000012")
    second = trainer(tmp_path / "resumed", resumed, gradient_accumulation_steps=2)
    second.resume()
    second.fit()
    assert resumed.seen == straight.seen[16:]
    assert states(tmp_path / "straight", 12) == states(tmp_path / "resumed", 12)


def test_resuming_removes_later_lines_of_the_log(tmp_path):
    trainer(tmp_path).fit()
    complete = log(tmp_path)
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 14, "loss": 1}\n{"step": 1')
    resumed = trainer(tmp_path, steps=16)
    resumed.resume()
    assert log(tmp_path) == complete


@pytest.mark.parametrize("parts", [2, 4])
def test_gradient_accumulation_does_not_change_the_weights(tmp_path, parts):
    """Noise belongs to the position in the global batch, so without dropout the gradients agree."""
    results = []
    for number in (1, parts):
        run = trainer(tmp_path / str(number), gradient_accumulation_steps=number)
        for module in run.placement.module.modules():
            module.p = 0.0
        run.fit()
        results.append(run.placement.module.state_dict())
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], atol=1e-6, rtol=1e-5)


def test_a_batch_that_cannot_be_shared_equally_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"train.batch_size: 8 cannot be shared .* 3 accumulation .* try 9"):
        trainer(tmp_path, gradient_accumulation_steps=3)


def test_ema_equals_its_closed_form(tmp_path):
    """The weights of each step have the coefficient (1 - decay) times the product of the later decays."""
    run = trainer(tmp_path, ema_decay=0.7)
    past = fit_and_record(run)
    decays = [min(0.7, (1 + n) / (10 + n)) for n in range(12)]
    expected = past[0] * math.prod(decays)
    for n, weights in enumerate(past[1:]):
        expected = expected + weights * (1 - decays[n]) * math.prod(decays[n + 1 :])
    torch.testing.assert_close(run.ema.model[0].weight, expected, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(run.ema.model[0].weight, past[-1], atol=1e-4)


def test_power_function_emas_equal_their_closed_form(tmp_path):
    """Snapshots of them are saved at equal intervals."""
    run = trainer(tmp_path, snapshots=4)
    past = fit_and_record(run)[1:]
    for std, average in run.posthoc.items():
        expected = 0
        for step, weights in enumerate(past):
            rate = 1 - (1 - 1 / (step + 1)) ** (std_to_gamma(std) + 1)
            expected = (1 - rate) * expected + rate * weights
        torch.testing.assert_close(average.model[0].weight, expected, atol=1e-6, rtol=1e-5)
    assert list(list_snapshots(tmp_path)) == [3, 6, 9, 12]
    assert trainer(tmp_path / "without", snapshots=0).posthoc == {}


def test_snapshots_after_the_checkpoint_are_removed(tmp_path):
    trainer(tmp_path, snapshots=6, checkpoint_every=9).fit()
    shutil.rmtree(tmp_path / "checkpoints" / "step_00000012")
    before = {step: file.read_bytes() for step, file in list_snapshots(tmp_path).items()}
    resumed = trainer(tmp_path, snapshots=6, checkpoint_every=9)
    resumed.resume()
    assert list(list_snapshots(tmp_path)) == [2, 4, 6, 8]
    resumed.fit()
    assert {step: file.read_bytes() for step, file in list_snapshots(tmp_path).items()} == before


def test_numbers_of_a_preview_are_in_the_log(tmp_path):
    trainer(tmp_path, preview_every=5).fit()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert {line["step"]: line.get("seen") for line in lines if "seen" in line} == {5: 2.5, 10: 5.0, 12: 6.0}
    assert all(0 <= line["preview_share"] < 1 for line in lines if "seen" in line)
    assert lines[-1]["minutes_left"] == 0
    assert lines[0]["minutes_left"] >= 0


def test_measuring_the_step_time_writes_nothing(tmp_path):
    run = trainer(tmp_path / "measured", steps=10**9, learning_rate=0.01)
    step = run._train_step

    def slow(micro_batches):
        time.sleep(0.02)
        step(micro_batches)

    run._train_step = slow
    per_step = run.measure_step_time(0.2)
    assert 0.02 <= per_step < 0.1
    assert 8 <= run.step <= 20
    assert not any((tmp_path / "measured").iterdir())


def test_learning_rates_are_functions_of_the_step():
    def rates(schedule):
        config = TrainConfig(steps=100, warmup_steps=10, learning_rate=1.0, lr_schedule=schedule)
        return [config.learning_rate_at(step) for step in (0, 4, 9, 50, 75)]

    assert rates("constant") == pytest.approx([0.1, 0.5, 1, 1, 1])
    assert rates("linear") == pytest.approx([0.1, 0.5 * 0.96, 0.91, 0.5, 0.25])
    assert rates("cosine")[3:] == pytest.approx([0.5, (1 - math.sqrt(0.5)) / 2])


def test_each_step_is_followed_by_what_is_due():
    """At most one line of the log per step, and a preview, checkpoint and snapshot also at the last step."""
    config = TrainConfig(steps=12, log_every=4, preview_every=6, checkpoint_every=5, snapshots=4)
    nothing = Due(log=False, checkpoint=False, preview=False, snapshot=False)
    expected = {
        3: Due(log=False, checkpoint=False, preview=False, snapshot=True),
        4: Due(log=True, checkpoint=False, preview=False, snapshot=False),
        5: Due(log=True, checkpoint=True, preview=False, snapshot=False),
        6: Due(log=True, checkpoint=False, preview=True, snapshot=True),
        8: Due(log=True, checkpoint=False, preview=False, snapshot=False),
        9: Due(log=False, checkpoint=False, preview=False, snapshot=True),
        10: Due(log=True, checkpoint=True, preview=False, snapshot=False),
        12: Due(log=True, checkpoint=True, preview=True, snapshot=True),
    }
    for step in range(1, 13):
        assert config.due_after(step, stopping=False, retry_checkpoint=False) == expected.get(step, nothing), step


def test_stopping_logs_and_saves_without_a_preview():
    config = TrainConfig(steps=12, log_every=4, preview_every=6, checkpoint_every=5, snapshots=0)
    assert config.due_after(1, True, False) == Due(log=True, checkpoint=True, preview=False, snapshot=False)
    assert config.due_after(6, True, False) == Due(log=True, checkpoint=True, preview=True, snapshot=False)


def test_a_failed_checkpoint_is_retried_with_each_line_of_the_log_only():
    config = TrainConfig(steps=12, log_every=4, preview_every=6, checkpoint_every=5, snapshots=0)
    due = [step for step in range(1, 13) if config.due_after(step, False, retry_checkpoint=True).checkpoint]
    assert due == [4, 5, 6, 8, 10, 12]


def test_a_step_that_is_not_finite_is_skipped_and_counted(tmp_path):
    run = trainer(tmp_path, Fit(poison={3, 5}))
    weights = fit_and_record(run)[1:]
    assert run.skipped == 2
    assert torch.equal(weights[2], weights[3])
    assert not torch.equal(weights[3], weights[4])
    assert torch.equal(weights[4], weights[5])
    assert log(tmp_path)[-1]["skipped"] == 2
    assert all(math.isfinite(line["loss"]) for line in log(tmp_path))
    resumed = trainer(tmp_path)
    resumed.resume()
    assert resumed.skipped == 2


def test_too_many_non_finite_steps_stop_the_run(tmp_path):
    run = trainer(tmp_path, Fit(poison=range(5, 99)), steps=50)
    with pytest.raises(UserError, match=rf"not finite {NON_FINITE_LIMIT} times in a row"):
        run.fit()
    saved = load_tensors(list_checkpoints(tmp_path)[-1] / "model.safetensors")
    assert all(value.isfinite().all() for value in saved.values())
    assert torch.equal(saved["0.weight"], run.placement.module[0].weight)


def test_the_newest_checkpoints_are_kept(tmp_path):
    (tmp_path / "checkpoints" / ".step_00000001.partial").mkdir(parents=True)  # from an interrupted save
    trainer(tmp_path, keep_checkpoints=2, checkpoint_every=3).fit()
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_00000009", "step_00000012"]


def test_other_data_are_refused_unless_forced(tmp_path, capsys):
    trainer(tmp_path).fit()
    for others in (torch.linspace(-1, 1, 39)[:, None], torch.linspace(0, 1, 40)[:, None]):
        run = trainer(tmp_path, steps=20)
        run.data.x = others
        message = rf"data.path: different data set \({len(others)} examples, .*step_00000012 has 40\); .* --force"
        with pytest.raises(UserError, match=message):
            run.resume()
        run.resume(force=True)
        assert "continuing (--force)" in capsys.readouterr().out
        assert run.step == 12


def test_training_fits_a_line(tmp_path):
    run = trainer(tmp_path, steps=300, learning_rate=0.03, ema_decay=0.9, checkpoint_every=300, log_every=100)
    run.fit()
    x = torch.tensor([[-0.8], [0.5]])
    assert run.ema.model(x).flatten().tolist() == pytest.approx([-2.4, 1.5], abs=0.25)


# ── faults ────────────────────────────────────────────────────────────────────────────────────────


class FitWithEvents(Fit):
    """Also call functions at the beginning of some steps, {step: function}."""

    def __init__(self, events):
        super().__init__()
        self.events = events

    def loss(self, model, rng, x):
        self.events.get(self.calls, lambda: None)()
        return super().loss(model, rng, x)


@pytest.fixture
def small_disk(tmp_path):
    """Mount a file system of 256 KiB for one test."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("a file system can be mounted by root only")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def fill(disk):
    """Fill a disk to the last byte."""
    with pytest.raises(OSError, match="No space left"), open(disk / "ballast", "wb", buffering=0) as file:
        while True:
            file.write(bytes(1024))


def test_a_full_disk_does_not_stop_training(tmp_path, small_disk, capsys):
    """Full from step 3 on, when a checkpoint, a preview and snapshots are due; free from step 6."""
    events = {2: lambda: fill(small_disk), 5: (small_disk / "ballast").unlink}
    full = trainer(small_disk / "run", FitWithEvents(events), checkpoint_every=4, preview_every=4, snapshots=12)
    full.preview = lambda step, ema: (full.folder / "preview").write_text("...") and {}
    full.fit()
    uninterrupted = trainer(tmp_path / "uninterrupted", preview_every=4, snapshots=12)
    uninterrupted.preview = lambda step, ema: {}
    uninterrupted.fit()
    output = [line for line in capsys.readouterr().out.splitlines() if line]
    assert [line.split(":")[1] for line in output] == [" no snapshot", " no preview", " no checkpoint"]
    assert all("No space left on device; training continues" in line for line in output)
    assert log(full.folder) == log(uninterrupted.folder)
    assert {path.name for path in list_checkpoints(full.folder)} == {"step_00000008", "step_00000012"}
    assert states(full.folder, 12) == states(uninterrupted.folder, 12)


def test_a_failed_checkpoint_is_retried_with_the_log(small_disk):
    events = {3: lambda: fill(small_disk), 4: (small_disk / "ballast").unlink}
    run = trainer(small_disk / "run", FitWithEvents(events), steps=7, checkpoint_every=4, keep_checkpoints=9)
    run.fit()
    assert [path.name for path in list_checkpoints(run.folder)] == ["step_00000006", "step_00000007"]


def test_a_final_checkpoint_that_cannot_be_written_is_an_error(small_disk):
    run = trainer(small_disk / "run", FitWithEvents({9: lambda: fill(small_disk)}))
    with pytest.raises(UserError, match=r"checkpoint of step 12 cannot be written; .* resume from step_00000008"):
        run.fit()
    assert all(map(is_intact, list_checkpoints(run.folder)))
    assert not list((run.folder / "checkpoints").glob(".*"))
    (small_disk / "ballast").unlink()
    again = trainer(small_disk / "run")
    again.resume()
    assert again.step == 8
    again.fit()
    assert log(run.folder)[-1]["step"] == 12


def test_a_deleted_log_begins_again(tmp_path):
    file = tmp_path / "run" / "log.jsonl"
    run = trainer(tmp_path / "run", FitWithEvents({6: file.unlink}))
    run.fit()
    assert [line["step"] for line in log(run.folder)] == [8, 10, 12]


def test_out_of_memory_names_the_batch_size_and_the_remedy(tmp_path):
    run = trainer(tmp_path, FitWithEvents({9: lambda: torch.empty(1 << 60)}), gradient_accumulation_steps=2)
    message = (
        r"out of memory at step 4 with train.batch_size 8, 4 at a time: raise --train.gradient_accumulation_steps, "
        r"which changes nothing else, or lower --train.batch_size"
    )
    with pytest.raises(UserError, match=message):
        run.fit()
    assert is_intact(list_checkpoints(tmp_path)[-1])


def test_a_changed_environment_is_logged(tmp_path, capsys):
    trainer(tmp_path).fit()
    run = trainer(tmp_path, steps=14)
    run.accelerator.state.__dict__["_mixed_precision"], before = "bf16", run.accelerator.mixed_precision
    try:
        run.resume()
    finally:
        run.accelerator.state.__dict__["_mixed_precision"] = before
    assert "precision: no -> bf16" in capsys.readouterr().out


def test_weights_of_the_least_validation_loss_are_published_also_by_a_resumed_run(tmp_path):
    """The losses fall until step 4; a resumed run has only those after its checkpoint of step 8."""
    published = {}

    def with_previews(folder):
        run = trainer(folder, publish="least_val_loss", preview_every=2, keep_checkpoints=9)
        averages, losses = {}, {2: 3.0, 4: 1.0, 6: 2.0, 8: 2.0, 10: 1.5, 12: 1.0}

        def preview(step, ema):
            averages[step] = ema[0].weight.clone()
            return {"val_loss": losses[step]}

        run.preview, run.publish = preview, lambda ema: published.update(weight=ema[0].weight.clone())
        return run, averages

    run, averages = with_previews(tmp_path / "whole")
    run.fit()
    assert torch.equal(published["weight"], averages[4])
    assert not torch.equal(averages[4], averages[12])
    whole = states(tmp_path / "whole", 12)
    shutil.rmtree(tmp_path / "whole" / "checkpoints" / "step_00000012")
    published.clear()
    run, _ = with_previews(tmp_path / "whole")
    run.resume()
    assert torch.equal(published["weight"], averages[4])
    run.fit()
    assert torch.equal(published["weight"], averages[4])
    assert states(tmp_path / "whole", 12) == whole


def test_without_validation_the_newest_weights_are_published(tmp_path):
    (run := trainer(tmp_path, publish="least_val_loss")).fit()
    assert run.published is run.ema.model

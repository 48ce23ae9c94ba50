"""Whether everything works on this device, and as exactly as it should."""

import copy
import time
import warnings
from pathlib import Path

import torch
from workbench import Workbench

from diffunet.core.errors import UserError
from diffunet.core.runtime import set_deterministic
from diffunet.sampling.guidance import Guided
from diffunet.sampling.loop import sample
from diffunet.training.trainer import Trainer

OBJECTIVES = {
    "ddpm": {"type": "ddpm", "prediction_type": "v_prediction", "beta_schedule": "cosine"},
    "edm": {"type": "edm"},
    "flow": {"type": "flow"},
}


def environment(bench: Workbench) -> dict:
    """Versions and the card."""
    import accelerate
    import diffusers

    found = {"torch": torch.__version__, "accelerate": accelerate.__version__, "diffusers": diffusers.__version__}
    if bench.cuda:
        memory = torch.cuda.mem_get_info()[1] / 2**30
        found |= {"device": torch.cuda.get_device_name(), "gib": round(memory, 1), "devices": torch.cuda.device_count()}
        found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return found


def commands(bench: Workbench) -> dict:
    """Train on digits with previews, resume, sample, evaluate."""
    run = bench.folder / "digits"
    small = ["--unet.levels", "[{channels: 16, blocks: 1}, {channels: 32, blocks: 1}]"] if bench.tiny else []
    times = ["--train.steps", 60, "--train.log_every", 20, "--train.preview_every", 30, "--train.checkpoint_every", 30]
    bench.command("train", "--train.output", run, "--overwrite", *times, *small)
    bench.command("train", "--resume", run, "--train.steps", 80)
    printed = bench.command("sample", run, "--num_images", 9)
    bench.command("evaluate", run, "--num_images", 64, "--output", bench.folder / f"evaluation-{time.time_ns()}")
    return {"loss": bench.log(run)[-1]["loss"], "printed": printed.strip().splitlines()[-1]}


def objectives_and_precisions(bench: Workbench) -> dict:
    """Twelve steps of each objective in each precision; fp16 may skip some at first."""
    found = {}
    for name, objective in OBJECTIVES.items():
        for precision in ("bf16", "fp16", "no") if bench.cuda else ("bf16", "no"):
            config = bench.config(objective=objective, train={"runtime": {"mixed_precision": precision}})
            bench.trainer(_with_train(config, runtime={"mixed_precision": precision})).fit()
            line = bench.log(config.train.output)[-1]
            assert line["loss"] < 100, line
            assert line["skipped"] < 8, line
            found[f"{name} {precision}"] = round(line["loss"], 4)
    return found


def broken_gradients_are_skipped(bench: Workbench) -> dict:
    """A step with NaN changes neither weights nor Adam's count of steps."""
    trainer = bench.trainer(bench.config())
    batches = trainer._batches()
    _step(trainer, batches)
    before = [parameter.detach().clone() for parameter in trainer.placement.module.parameters()]
    loss = trainer.objective.loss
    trainer.objective.loss = lambda *a, **k: {name: value * torch.nan for name, value in loss(*a, **k).items()}
    _step(trainer, batches)
    unchanged = zip(before, trainer.placement.module.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in unchanged)
    assert trainer.skipped == 1
    states = trainer.placement.optimizer.optimizer.state.values()
    assert {float(state["step"]) for state in states} == {1.0}
    return {}


def waits(bench: Workbench) -> dict:
    """Where the host waits for the device: in no step of a training, and in no call of the network in sampling."""
    trainer = bench.trainer(bench.config())
    batches = trainer._batches()
    for _ in range(3):
        _step(trainer, batches)
    found = {"training step": _waits(lambda: _step(trainer, batches), bench)}
    model, noise = trainer.ema.model, torch.randn(2, 3, 16, 16, device=bench.device)
    sampler = trainer.objective.sampler("dpm++", 5)
    sample(model, sampler, noise)
    found["5 steps of dpm++"] = _waits(lambda: sample(model, trainer.objective.sampler("dpm++", 5), noise), bench)
    assert not found["training step"], found
    return found


def compiled(bench: Workbench) -> dict:
    """One graph without breaks for the whole network, and the copies for the averages not compiled."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    runtime = {"mixed_precision": bench.precision, "compile": True}
    trainer = bench.trainer(_with_train(bench.config(), runtime=runtime))
    started = time.monotonic()
    trainer.fit()
    graphs = counters["stats"]["unique_graphs"]
    assert not counters["graph_break"], dict(counters["graph_break"])
    assert graphs == 1, graphs
    assert trainer.ema.model.unet._compiled_call_impl is None
    return {"graphs": graphs, "seconds_with_compiling": round(time.monotonic() - started, 1)}


def resumed(bench: Workbench) -> dict:
    """How far a training differs from itself, and resumed from itself, with and without deterministic algorithms."""
    found = {}
    for exact in (False, True):
        weights = {}
        for how in ("once", "again", "in pieces"):
            config = _with_train(bench.config(), deterministic=exact)
            trainer = bench.trainer(config)
            if how == "in pieces":
                trainer.config = trainer.config.model_copy(update={"steps": 6})
                trainer.fit()
                trainer = bench.trainer(config)
                trainer.resume()
            trainer.fit()
            weights[how] = torch.cat([p.detach().flatten() for p in trainer.placement.module.parameters()])
        differences = {how: float((weights[how] - weights["once"]).abs().max()) for how in ("again", "in pieces")}
        found["deterministic" if exact else "default"] = differences
    set_deterministic(False)
    same = {"again": 0.0, "in pieces": 0.0}
    assert found["deterministic"] == same or bench.cuda, found
    return found


def samplers(bench: Workbench) -> dict:
    """Every sampler of every objective beside the CPU, from the same noise, in fp32 without TF32."""
    found, tf32 = {}, torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    for name, objective in OBJECTIVES.items():
        trainer = bench.trainer(bench.config(objective=objective))
        here, objective = trainer.ema.model, trainer.objective
        generator = torch.Generator().manual_seed(1)
        for parameter in here.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator).mul(0.05).to(parameter.device)
        there = copy.deepcopy(here).cpu()
        noise, label = torch.randn(3, 3, 16, 16, generator=generator), torch.tensor([0, 1, 0])
        interval = tuple(objective.time_at(torch.tensor([0.1, 0.9])).tolist())
        for kind in objective.samplers():
            images = []
            for model, device in ((here, bench.device), (there, torch.device("cpu"))):
                generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
                guided = Guided(model, 1.5, interval)
                sampler = objective.sampler(kind, 5)
                images.append(sample(guided, sampler, noise.to(device), generators, label=label.to(device)).cpu())
            found[f"{name} {kind}"] = float((images[0] - images[1]).norm() / images[1].norm())
    torch.backends.cudnn.allow_tf32 = tf32
    assert max(found.values()) < 0.02, found
    return found


def clock_of_the_log(bench: Workbench) -> dict:
    """The images per second of the log beside those of a clock outside."""
    config = bench.config(side=16 if bench.tiny else 32)
    steps, size = (40, 8) if bench.tiny else (400, 512)
    changes = {"steps": steps, "batch_size": size, "log_every": 10 if bench.tiny else 50, "snapshots": 0}
    trainer = bench.trainer(_with_train(config, checkpoint_every=10**8, **changes))
    trainer.save = lambda: None
    bench.synchronize()
    started = time.monotonic()
    trainer.fit()
    bench.synchronize()
    true = steps * size / (time.monotonic() - started)
    lines = bench.log(trainer.config.output)
    logged = len(lines) / sum(1 / line["images_per_second"] for line in lines)
    assert abs(logged / true - 1) < 0.15, (logged, true)
    return {"log": round(logged), "true": round(true)}


def volumes(bench: Workbench) -> dict:
    """A segmentation of volumes, and its prediction in tiles."""
    run = bench.folder / "volumes"
    config = ["--config", "configs/tubules.yaml", "--train.output", run, "--overwrite"]
    small = ["--data.patch", 16, "--unet.levels", "[{channels: 8, blocks: 1}, {channels: 16, blocks: 1}]"]
    bench.command("train", *config, "--train.steps", 4, "--train.batch_size", 2, *(small if bench.tiny else []))
    return {"loss": bench.log(run)[-1]["loss"]}


def latents(bench: Workbench) -> dict:
    """An autoencoder, and a generator of its latents."""
    run, size = bench.folder / "autoencoder", ["--data.resolution", 16 if bench.tiny else 32]
    bench.command(
        *("train", "--config", "configs/autoencoder.yaml", "--train.output", run, "--overwrite", *size),
        *("--train.steps", 4 if bench.tiny else 60, "--train.batch_size", 8),
    )
    generator = bench.folder / "latent"
    bench.command(
        *("train", "--config", "configs/latent.yaml", "--codec.from", run, "--train.output", generator, "--overwrite"),
        *(*size, "--train.steps", 4 if bench.tiny else 60, "--sample.num_images", 4),
    )
    return {"loss": bench.log(generator)[-1]["loss"]}


def out_of_memory(bench: Workbench) -> dict:
    """A batch that is too large ends in one line with a remedy."""
    if not bench.cuda:
        return {"skipped": "needs a GPU"}
    trainer = bench.trainer(_with_train(bench.config(side=64), batch_size=10**6, snapshots=0))
    try:
        trainer.fit()
    except UserError as mistake:
        assert "out of memory" in str(mistake)
        return {"printed": str(mistake)}
    raise AssertionError("a million images fit")


def benchmark_and_automatic_batch(bench: Workbench) -> dict:
    """What --benchmark and batch_size: auto say."""
    run = bench.folder / "automatic"
    small = ["--data.path", bench.images(64, 16), "--data.resolution", 16, "--unet.head_channels", "null"]
    small += ["--unet.levels", "[{channels: 16, blocks: 1}, {channels: 16, blocks: 1}]"]
    config = ["--config", "configs/folder.yaml", *small]
    said = bench.command("train", *config, "--benchmark", "--train.output", run)
    steps = ["--train.steps", 3, "--sample.num_images", 4, "--sample.steps", 4]
    chosen = bench.command("train", *config, "--train.batch_size", "auto", *steps, "--train.output", run, "--overwrite")
    found = next(line for line in chosen.splitlines() if line.startswith("train.batch_size"))
    return {"benchmark": said.splitlines()[-6:], "chosen": found}


def data_outside_of_the_device(bench: Workbench) -> dict:
    """Images that are decoded as needed, by two workers, into pinned memory; and gradient checkpointing."""
    levels = [{"channels": 64, "blocks": 1, "gradient_checkpointing": True}, {"channels": 64, "blocks": 1}]
    config = bench.config(unet={"levels": levels})
    data = config.data.model_copy(update={"memory_budget": 0, "workers": 2})
    bench.trainer(config.model_copy(update={"data": data})).fit()
    return {"loss": bench.log(config.train.output)[-1]["loss"]}


def several_devices(bench: Workbench) -> dict:
    """Two processes by DDP, in shards, and sampling: on a card each, or on CPUs."""
    if bench.cuda and torch.cuda.device_count() < 2:
        return {"skipped": "needs two GPUs"}
    found = {}
    for name, flags in {"ddp": [], "shards": ["--train.shard", "true"]}.items():
        run = bench.folder / name
        words = ["train", "--train.output", run, "--overwrite", "--train.steps", 6 if bench.tiny else 40, *flags]
        bench.command(*words, processes=2)
        found[name] = bench.log(run)[-1]["loss"]
    bench.command("sample", bench.folder / "ddp", "--num_images", 64, "--batch_size", 8, processes=2)
    return found


def _with_train(config, **changes):
    values = config.train.model_dump() | changes
    return config.model_copy(update={"train": type(config.train).model_validate(values)})


def _step(trainer: Trainer, batches) -> None:
    trainer._train_step(next(batches))
    trainer.step += 1


def _waits(act, bench: Workbench) -> list[str]:
    """Return the places that wait for the device, by torch's own debug mode."""
    if not bench.cuda:
        act()
        return []
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        act()
    torch.cuda.set_sync_debug_mode("default")
    return sorted({f"{Path(each.filename).name}:{each.lineno}" for each in seen if "synchron" in str(each.message)})

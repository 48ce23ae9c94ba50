"""Plans from data whose objects are known: the field by the network itself, memory by what is stored."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffunet.core.rng import BatchRNG
from diffunet.core.settings import settings_from
from diffunet.data.cases import Case
from diffunet.data.paired import PairedData
from diffunet.models.config import LevelConfig, UNetConfig
from diffunet.models.inspection import receptive_field
from diffunet.runs.memory import bytes_per_patch, patches_that_fit
from diffunet.runs.plan import Choice, Plan, choose_balanced, choose_folds, choose_levels, make_plan
from diffunet.runs.prediction import PredictionConfig
from diffunet.training.benchmark import images_that_fit, per_example, stored_bytes

PLENTY = 2**40
SHALLOW = [{"channels": 4, "blocks": 1}] * 2


def quiet(text: str) -> None:
    """Print nothing."""


def write_squares(
    folder: Path, cases: int = 10, side: int = 96, square: int = 60, visible: int = 0, stack: bool = False
) -> None:
    """Write a square (255) on noise, as bright as the rest plus `visible`; in a stack, neighbors share their noise."""
    random = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    shared = random.normal(0, 20, (side + cases, side))
    for number in range(cases):
        label = np.zeros((side, side), np.uint8)
        top, left = random.integers(0, side - square + 1, 2)
        label[top : top + square, left : left + square] = 255
        noise = shared[number // 4 * 4 :][:side] if stack else random.normal(0, 20, label.shape)
        image = 100 + noise + np.where(label > 0, visible, 0)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"a{number}.png")
        Image.fromarray(label).save(folder / "labels" / f"a{number}.png")


def configured(**changes) -> PredictionConfig:
    values = {"data": {"path": "squares"}, "train": {"batch_size": 2}} | changes
    values["unet"] = {"levels": SHALLOW, "middle_attention": False, "norm_groups": 2} | changes.get("unet", {})
    return PredictionConfig.model_validate(values)


def planned(config: PredictionConfig, memory: int = PLENTY) -> tuple[PairedData, Plan, dict[str, Choice]]:
    pairs = config.load(quiet)
    plan = make_plan(pairs, config, memory)
    return pairs, plan, {choice.key: choice for choice in plan.choices}


# ── depth and patch ───────────────────────────────────────────────────────────────────────────────


def reach(config: UNetConfig) -> int:
    """Return how many positions of an input have a gradient in the network itself: the widest of some outputs."""
    from diffunet.models.unet import UNet

    unet = UNet(config.model_copy(update={"dims": 1, "norm": "none"})).double()
    for parameter in unet.parameters():
        torch.nn.init.uniform_(parameter, 0.1, 0.2)
    x = torch.rand(1, config.in_channels, 64 * config.max_stride, dtype=torch.float64)
    widest = 0
    for position in range(config.max_stride):
        x.requires_grad_(True).grad = None
        unet(x)[..., 32 * config.max_stride + position].sum().backward()
        reached = x.grad.abs().sum(dim=(0, 1)).nonzero()
        widest = max(widest, int(reached.max() - reached.min()) + 1)
    return widest


def test_hidden_objects_need_depth_and_a_patch_and_the_flags_give_them(in_a_new_folder):
    write_squares(Path("squares"), square=80)
    config = configured(data={"path": "squares", "patch": 32})
    pairs, plan, choices = planned(config)
    assert not choices["unet.levels"].kept
    assert choices["data.patch"].value == "96"  # the images; 32 are less than the square
    assert any("80 on average, median 80, 95 % up to 80" in line for line in plan.facts)
    better = settings_from(config, PredictionConfig, plan.flags)
    assert receptive_field(better.unet) == reach(better.resolve(pairs).unet) >= 80
    _, again, _ = planned(better)
    assert not again.flags.keys() & {"unet.levels", "data.patch", "train.batch_size"}


def test_visible_objects_need_none_of_it(in_a_new_folder):
    write_squares(Path("squares"), visible=120)
    config = configured(unet={"levels": SHALLOW + SHALLOW[:1]}, data={"path": "squares", "patch": 64})
    _, plan, choices = planned(config)
    assert choices["unet.levels"].kept
    assert choices["data.patch"].kept
    assert plan.facts[-1] == "receptive field: 54 pixels suffice: the contrast is high, at least 0.1"


def of_size(*size: int) -> list[Case]:
    return [Case("case", torch.zeros(1, *size), torch.zeros(size, dtype=torch.int16))]


@pytest.mark.parametrize("preset", ["unet2015", "ternaus11"])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_deeper_networks_can_be_built(preset, depth):
    """Those whose coarsest level has no way up keep it."""
    from diffunet.models.meta import on_meta
    from diffunet.models.unet import UNet

    unet = UNetConfig(preset=preset)
    needed = receptive_field(unet)
    shallow = unet.model_copy(update={"levels": (*unet.levels[:depth], unet.levels[-1])})
    choice, deeper = choose_levels(shallow, needed, of_size(1024, 1024))
    assert receptive_field(deeper) >= needed > receptive_field(shallow)
    assert deeper.levels[-1] == unet.levels[-1]
    with on_meta():
        UNet(settings_from(shallow, UNetConfig, {"levels": choice.value}))


@pytest.mark.parametrize(("side", "levels"), [(200, 4), (32, 4), (31, 3), (8, 2), (3, 1)])
def test_the_coarsest_level_keeps_four_positions(side, levels):
    unet = UNetConfig(levels=(LevelConfig(channels=4, blocks=1),) * 4)
    choice, found = choose_levels(unet, 0, of_size(300, side))
    assert len(found.levels) == levels
    assert choice.kept == (levels == 4)


def test_levels_end_where_the_images_do():
    unet = UNetConfig(levels=(LevelConfig(channels=4, blocks=1),) * 2)
    choice, found = choose_levels(unet, 500, of_size(40, 300))
    assert len(found.levels) == 4  # 5 positions at the coarsest; 2 with another level
    assert receptive_field(found) < 500
    assert not choice.kept
    again, _ = choose_levels(found, 500, of_size(40, 300))
    assert again.kept
    assert "too small for more levels" in again.reason


@pytest.mark.parametrize(
    ("patch", "found"), [(None, "[48, 96]"), ([48, 96], "[48, 96]"), ([48, 192], "[48, 96]"), ([16, 96], "[48, 96]")]
)
def test_patches_follow_the_images(in_a_new_folder, patch, found):
    write_squares(Path("squares"), square=40)
    for file in Path("squares").rglob("*.png"):
        Image.open(file).crop((0, 20, 96, 70)).save(file)  # 50 high and 96 wide
    config = configured(data={"path": "squares", "patch": patch}, unet={"levels": [{"channels": 4}] * 4})
    _, _, choices = planned(config)
    assert choices["data.patch"].value == found
    assert choices["data.patch"].kept == (patch in (None, [48, 96]))


def test_valid_borders_leave_half_of_a_patch(in_a_new_folder):
    write_squares(Path("squares"), visible=120)
    config = configured(unet={"padding": "valid", "resampling": "pool", "block": "plain", "norm": "none"})
    _, plan, choices = planned(config)
    assert "valid borders leave 36 of 96 pixels" in choices["data.patch"].reason
    better = settings_from(config, PredictionConfig, plan.flags)
    resolved = better.resolve(better.load(quiet))
    assert 2 * resolved.border[0] <= resolved.patch_size[0] <= 96 + resolved.border[0]
    assert planned(better)[2]["data.patch"].kept


# ── memory ────────────────────────────────────────────────────────────────────────────────────────

NETWORKS = {
    "residual": {},
    "plain": {"block": "plain", "resampling": "pool", "skips": "level", "norm": "none"},
    "checkpointing": {"levels": [{**level, "gradient_checkpointing": True} for level in SHALLOW]},
    "attention": {"levels": [{"channels": 16}, {"channels": 32, "attention": True}]},
    "dropout": {"dropout": 0.1, "resampling": "average"},
}


@pytest.mark.parametrize("unet", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("kind", ["segmentation", "regression", "posterior"])
def test_the_forecast_is_what_a_step_stores(in_a_new_folder, unet, kind):
    """Of real tensors on the CPU."""
    write_squares(Path("squares"))
    objective = {"type": kind} | ({"targets": "numbers"} if kind == "posterior" else {})
    config = configured(objective=objective, unet=unet, data={"path": "squares", "patch": 48})
    pairs = config.load(quiet)
    config = config.resolve(pairs)
    predictor, objective = config.build_predictor(), config.build_objective(pairs)

    def stored(number: int) -> int:
        image = torch.rand(number, 1, 48, 48)
        target = torch.zeros(number, 48, 48, dtype=torch.int16) if pairs.labels else torch.rand(number, 1, 48, 48)
        return stored_bytes(lambda: objective.loss(predictor, image, target, rng=BatchRNG()))

    assert bytes_per_patch(config, pairs, (48, 48)) == pytest.approx(per_example(stored), rel=0.15)


def test_a_batch_is_limited_by_memory_and_by_the_set(in_a_new_folder):
    write_squares(Path("squares"), visible=120)
    config = configured(train={"batch_size": 64}, data={"path": "squares", "patch": 32})
    pairs, _, choices = planned(config)
    trained = len(pairs.split_fold()[0])
    enough = 0.05 * trained * 96**2 / 96**2
    assert choices["train.batch_size"].value == str(2 ** math.ceil(math.log2(max(2, enough))))
    assert planned(configured())[2]["train.batch_size"].kept
    resolved = config.resolve(pairs).replace(data={"patch": (96, 96)})
    fitting = [patches_that_fit(resolved, pairs, (96, 96), memory) for memory in (0, 10**9)]
    one = int((1.01 - fitting[0]) / (fitting[1] - fitting[0]) * 10**9)  # linear in the memory
    choices = planned(config, one)[2]
    assert (choices["data.patch"].value, choices["train.batch_size"].value) == ("96", "1")
    choices = planned(config, one // 3)[2]
    assert 32 <= int(choices["data.patch"].value) < 96
    assert "fits into" in choices["data.patch"].reason
    assert planned(config, 0)[2]["train.batch_size"].value == "1"


def test_memory_is_shared_with_the_optimizer():
    assert images_that_fit(1000, 0, 10) == pytest.approx(0.8 * 1000 / 15)
    assert images_that_fit(1000, 100, 10) == pytest.approx((0.8 * 1000 - 300) / 15)


# ── patches and cases ─────────────────────────────────────────────────────────────────────────────


def test_rare_classes_are_drawn_until_a_quarter_of_the_patches_has_them():
    """A place in a corner is in one of 81 x 81 windows of 20; a class that is drawn is it in half of the cases."""
    target = torch.zeros(100, 100, dtype=torch.int16)
    target[0, 0] = 1
    cases, names = [Case("case", torch.zeros(1, 100, 100), target)], ("rest", "spot")
    config = configured(data={"path": "squares", "patch": 20, "balanced": 0.1})
    choice = choose_balanced(config, cases, names)
    chance = 1 / 81**2
    assert (choice.value, choice.kept) == ("0.5", False)
    assert 0.5 / 2 + (1 - 0.5 / 2) * chance >= 0.25 > 0.45 / 2 + (1 - 0.45 / 2) * chance
    assert choose_balanced(config.replace(data={"balanced": 0.5}), cases, names).kept
    assert choose_balanced(config.replace(data={"patch": (100, 100)}), cases, names).kept


@pytest.mark.parametrize(
    ("touching", "border", "value", "kept"), [(1, 0, "10", 0), (0, 0, "0", 1), (1, 7, "7", 1), (0, 7, "7", 1)]
)
def test_touching_instances_have_borders(in_a_new_folder, touching, border, value, kept):
    write_squares(Path("squares"), square=20)
    for file in Path("squares/labels").iterdir():
        numbers = np.asarray(Image.open(file)) // 255
        numbers = np.where(numbers, 1 + (np.arange(96) % 8 >= 4) * touching, 0)
        Image.fromarray(numbers.astype(np.uint8)).save(file)
    config = configured(data={"path": "squares", "labels": "instances"}, weights={"border": border})
    choice = planned(config)[2]["weights.border"]
    assert (choice.value, choice.kept) == (value, bool(kept))


@pytest.mark.parametrize("stack", [False, True])
def test_slices_of_a_stack_are_recognized(in_a_new_folder, stack):
    write_squares(Path("squares"), cases=24, square=20, stack=stack)
    pairs = configured().load(quiet)
    (choice,) = choose_folds(configured().data, pairs)
    assert (choice.value, choice.kept) == (("order", False) if stack else ("name", True))
    ordered = configured(data={"path": "squares", "fold_by": "order"})
    assert choose_folds(ordered.data, pairs)[0].kept
    assert choose_folds(configured(data={"path": "squares", "fold": None}).data, pairs) == []


def test_prefixes_of_names_are_hinted_at(in_a_new_folder):
    write_squares(Path("squares"), cases=20, square=20)
    for file in Path("squares").rglob("*.png"):
        number = int(file.stem[1:])
        file.rename(file.with_stem(f"patient{number // 2}_{number % 2}"))
    config = configured()
    _, plan, choices = planned(config)
    assert "10 prefixes" in choices["data.group"].reason
    better = settings_from(config, PredictionConfig, plan.flags)
    trained, held_out = better.load(quiet).split_fold()
    names = better.load(quiet).names
    origins = [{names[index][:8] for index in part} for part in (trained, held_out)]
    assert not origins[0] & origins[1]


def test_a_line_can_be_pasted_or_is_kept():
    assert str(Choice("data.patch", "[48, 96]", "why", kept=False)) == "--data.patch '[48, 96]'     why"
    assert str(Choice("data.patch", "96", "why", kept=True)) == "  data.patch 96             kept: why"


def test_numbers_and_missing_objects_have_no_field(in_a_new_folder):
    write_squares(Path("squares"), visible=120)
    config = configured(objective={"type": "regression"}, data={"path": "squares", "patch": 64})
    _, plan, choices = planned(config)
    assert plan.facts[-1] == "receptive field: no rule is known for targets that are numbers"
    assert plan.flags == {}
    assert not {"data.balanced", "weights.border"} & choices.keys()
    trained, _ = configured().load(quiet).split_fold()
    names = configured().load(quiet).names
    for index in trained:
        file = Path("squares/labels", f"{names[index]}.png")
        Image.fromarray(np.zeros((96, 96), np.uint8)).save(file)
    assert planned(configured())[1].facts[-1] == "receptive field: the measured cases have no object"

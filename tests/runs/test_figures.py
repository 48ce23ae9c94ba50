import json

import numpy as np
import torch
from PIL import Image

from diffunet.runs.figures import draw_curves, plot_curves, save_comparison, save_grid, save_timeline, to_pil


def test_images_keep_their_pixels(tmp_path):
    for channels in (1, 3, 4):
        pixels = torch.randint(0, 256, (channels, 5, 7), dtype=torch.uint8)
        to_pil(pixels, 8).save(tmp_path / "p.png")
        found = np.atleast_3d(np.array(Image.open(tmp_path / "p.png")))
        assert np.array_equal(found, pixels.permute(1, 2, 0))


def test_16_bit_gray_is_kept_and_16_bit_color_reduced_to_8(tmp_path):
    pixels = torch.randint(0, 65536, (1, 5, 7), dtype=torch.int32)
    to_pil(pixels, 16).save(tmp_path / "p.png")
    assert np.array_equal(np.array(Image.open(tmp_path / "p.png")), pixels[0])
    assert np.array(to_pil(torch.full((3, 2, 2), 65535), 16)).max() == 255


def test_a_grid_has_every_image_enlarged(tmp_path):
    pixels = torch.arange(6, dtype=torch.uint8).reshape(6, 1, 1, 1).expand(6, 1, 8, 8) * 40 + 10
    save_grid(pixels, 8, tmp_path / "samples" / "grid.png", columns=3)
    grid = np.array(Image.open(tmp_path / "samples" / "grid.png"))
    assert grid.shape[:2] == (2 * (32 + 2) + 2, 3 * (32 + 2) + 2)
    gray = grid if grid.ndim == 2 else grid[..., 0]
    centers = [gray[18 + 34 * row, 18 + 34 * column] for row in range(2) for column in range(3)]
    assert centers == [10, 50, 90, 130, 170, 210]


def test_a_grid_shows_three_of_many_channels_and_the_mean_of_two(tmp_path):
    pixels = torch.tensor([0.0, 0.2, 1.0, 0.4, 0.6]).reshape(1, 5, 1, 1).expand(1, 5, 32, 32)
    save_grid(pixels, 32, tmp_path / "five.png")
    assert np.array(Image.open(tmp_path / "five.png"))[9, 9].tolist() == [0, 51, 255]
    save_grid(
        torch.tensor([100, 200], dtype=torch.uint8).reshape(1, 2, 1, 1).expand(1, 2, 32, 32), 8, tmp_path / "b.png"
    )
    assert np.array(Image.open(tmp_path / "b.png"))[9, 9] == 150


def test_a_comparison_has_a_labeled_row_per_kind(tmp_path):
    """Sources of half the size and one channel, 16-bit samples, one missing, and a transparent truth."""
    source = torch.tensor([0, 255, 100], dtype=torch.uint8).reshape(3, 1, 1, 1).expand(3, 1, 4, 4)
    samples = torch.tensor([65535, 0, 257 * 9], dtype=torch.int32).reshape(1, 3, 1, 1).expand(2, 3, 8, 8)
    truth = torch.tensor([9, 8, 7, 0], dtype=torch.uint8).reshape(1, 4, 1, 1).expand(3, 4, 8, 8)
    save_comparison(tmp_path / "c.png", [("source", source, 8), ("samples", samples, 16), ("truth", truth, 8)])
    picture = np.array(Image.open(tmp_path / "c.png"))
    margin = picture.shape[1] - 3 * 34
    assert picture.shape == (3 * 34 + 2, margin + 3 * 34, 3)
    centers = [[picture[18 + 34 * r, margin + 16 + 34 * c].tolist() for c in range(3)] for r in range(3)]
    white = [255, 255, 255]
    assert centers == [[[0] * 3, white, [100] * 3], [[255, 0, 9], [255, 0, 9], white], [white] * 3]
    assert picture[3, margin + 1].tolist() == [0] * 3  # small images fill their tiles
    assert all((picture[2 + 34 * r : 34 + 34 * r, :margin] < 128).any() for r in range(3))  # the labels


def test_the_timeline_has_the_first_row_of_each_preview(tmp_path):
    for step, value in ((5, 40), (10, 90), (2000, 200)):
        grid = torch.full((6, 1, 8, 8), value, dtype=torch.uint8)
        grid[3:] = 250  # the second row
        save_grid(grid, 8, tmp_path / f"step_{step:08d}.png", columns=3)
        save_timeline(tmp_path, (8, 8))
    strip = np.array(Image.open(tmp_path / "strip.png"))
    assert strip.shape == (3 * 34, 64 + 3 * 34 + 2, 3)
    assert [strip[18 + 34 * row, 64 + 18 + 34 * column, 0] for row in range(3) for column in range(3)] == [
        value for value in (40, 90, 200) for _ in range(3)
    ]
    assert (strip[:, :64] < 128).any()  # the margin has the step
    for step in range(100):
        save_grid(torch.full((3, 1, 8, 8), step, dtype=torch.uint8), 8, tmp_path / "many" / f"step_{step:08d}.png", 3)
    save_timeline(tmp_path / "many", (8, 8))
    rows = np.array(Image.open(tmp_path / "many" / "strip.png"))[18::34, 64 + 18, 0]
    assert len(rows) == 12
    assert (rows[0], rows[-1]) == (0, 99)


def test_curves_of_the_log(tmp_path):
    plot_curves(tmp_path)  # no log, no image, no error
    assert not (tmp_path / "curves.png").exists()
    lines = [{"step": n, "loss": 1 / n, "loss_noise0-50": 0.5, "loss_noise50-100": 2 / n} for n in (1, 2, 3)]

    def num_colors() -> int:
        (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        plot_curves(tmp_path)
        curves = np.array(Image.open(tmp_path / "curves.png").convert("RGB"))
        assert curves.shape[0] > 200
        return len(np.unique(curves[400:].reshape(-1, 3), axis=0))

    empty = num_colors()
    lines[1] |= {"kernel_distance": 0.1, "kernel_distance_error": 0.02, "sampled_images": 9}
    lines[1] |= {"mean_shift/0": 0.1, "std_ratio/0": 0.9}
    lines[1] |= {"val_loss": 0.4, "train_eval_loss": 0.3, "val_loss_noise0-50": 0.4}
    assert num_colors() > empty + 10


def test_curves_of_a_run_of_format_1_are_the_same(tmp_path):
    """Its log has the same numbers under former names."""
    today = {"val_loss": 0.4, "val_loss_noise0-50": 0.4, "train_eval_loss": 0.3, "mean_shift/0": 0.1}
    today |= {"std_ratio/0": 0.9, "sampled_images": 9}
    former = {"held_out_loss": 0.4, "held_out_loss_noise0-50": 0.4, "seen_loss": 0.3, "tint_0": 0.1}
    former |= {"contrast_0": 0.9, "drawn_images": 9}
    curves = []
    for names in (today, former, {}):
        line = {"loss": 0.5, "loss_noise0-50": 0.5, "kernel_distance": 0.1, "kernel_distance_error": 0.02} | names
        (tmp_path / "log.jsonl").write_text("".join(json.dumps({"step": step} | line) + "\n" for step in (1, 2)))
        plot_curves(tmp_path)
        curves.append((tmp_path / "curves.png").read_bytes())
    assert curves[0] == curves[1] != curves[2]


def test_a_log_without_noise_has_no_panels_of_samples(tmp_path):
    lines = [{"step": n, "loss": 1 / n, "val_loss": 0.5} for n in (1, 2, 3)]
    assert [axes.get_title() for axes in draw_curves(lines).axes] == ["loss"]
    lines[2]["val_dice"] = 0.7
    loss, dice = draw_curves(lines).axes
    assert [len(axes.lines) for axes in (loss, dice)] == [2, 1]
    assert dice.lines[0].get_xydata().tolist() == [[3, 0.7]]
    assert len(draw_curves([{"step": 1, "loss_noise0-50": 0.5}]).axes) == 4


def test_damaged_previews_and_log_lines_are_skipped(tmp_path):
    save_grid(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), 8, tmp_path / "step_00000002.png", columns=2)
    save_timeline(tmp_path, (8, 8))
    intact = (tmp_path / "strip.png").read_bytes()
    (tmp_path / "step_00000001.png").write_bytes(b"no image")
    (tmp_path / "step_00000003.png").symlink_to("step_00000003.png")
    save_timeline(tmp_path, (8, 8))
    assert (tmp_path / "strip.png").read_bytes() == intact

    lines = [json.dumps({"step": step, "loss": 1 / step}) for step in (1, 2)]
    damaged = [lines[0], "", "[1]", '{"loss": 3}', '{"step": "x", "loss": 1}', lines[1], '{"step": 3, "loss": [1]}']
    (tmp_path / "log.jsonl").write_bytes("\n".join([*damaged, '{"step": 4, "lo']).encode() + b"\xff")
    plot_curves(tmp_path)
    assert (tmp_path / "curves.png").exists()

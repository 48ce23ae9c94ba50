"""Sampling, evaluation, prediction by several processes, and by one that is killed: the bytes of one process."""

import shutil
import subprocess
import time
from pathlib import Path

import pytest
from helpers import mistake, run, train_small

from diffunet.core.shared_work import UNFINISHED
from diffunet.runs.evaluate import EvaluationConfig, evaluate, sample_for
from diffunet.runs.run import load_run
from diffunet.runs.shared_samples import SharedSamples
from stress.program import kill_all, program


def contents(folder: str | Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in Path(folder).rglob("*") if file.is_file()}


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    return output


def test_the_same_command_resumes_an_interrupted_sampling(small, capsys, monkeypatch):
    train_small()
    sampling = "--num_images", "12", "--batch_size", "4", "--steps", "2"
    assert run("sample", "run", *sampling, "--output", "whole") == 0
    from diffunet.runs import shared_samples

    write, calls = shared_samples.write_images, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return write(*arguments)

    monkeypatch.setattr(shared_samples, "write_images", interrupted)
    assert run("sample", "run", *sampling) == 130
    folder = Path("run/images/000")
    assert sorted(path.name for path in folder.iterdir()) == [UNFINISHED, *(f"0000{i}.png" for i in range(4))]
    assert run("sample", "run", *sampling, "--seed", "1") == 0, "another sampling begins its own folder"
    shutil.rmtree("run/images/001")
    assert run("sample", "run", *sampling) == 0
    assert len(calls) == 2 + 3 + 2
    assert contents(folder) == contents("whole")
    assert run("sample", "run", *sampling) == 0
    assert contents("run/images/001") == contents("whole"), "a finished one is left alone"
    line = mistake(capsys, "sample", "run", *sampling, "--output", "whole")
    assert "--output: whole is not empty; choose another folder" in line


def test_the_same_command_resumes_interrupted_predictions(small_predictor, capsys, monkeypatch):
    assert run("train", "--config", "predictor.yaml") == 0
    Path("pairs/images/a3.png").write_bytes(b"no image")
    assert run("predict", "run", "pairs/images", "--output", "whole") == 0
    from diffunet.runs import predicted_files

    save, done = predicted_files.save_image, []

    def interrupted(predictor, sources, path, extras):
        done.append(path.name)
        if len(done) == 5:
            raise KeyboardInterrupt
        save(predictor, sources, path, extras)

    monkeypatch.setattr(predicted_files, "save_image", interrupted)
    assert run("predict", "run", "pairs/images") == 130
    assert run("predict", "run", "pairs/images", "--overlays") == 0, "other predictions begin their own folder"
    shutil.rmtree("run/predictions/001")
    done.clear()
    monkeypatch.setattr(predicted_files, "save_image", lambda *a: (done.append(a[2].name), save(*a)))
    capsys.readouterr()
    assert run("predict", "run", "pairs/images") == 0
    assert done == ["a4", "a5", "a6", "a7"]
    assert "7 predictions: run/predictions/000" in capsys.readouterr().out
    assert contents("run/predictions/000") == contents("whole")


@pytest.mark.slow
def test_two_processes_sample_the_bytes_of_one_also_when_killed(small):
    train_small()
    sampling = "sample", "run", "--num_images", "60", "--batch_size", "6", "--steps", "40"
    finish(program("-m", "diffunet", *sampling, "--output", "one"))
    output = finish(program("-m", "diffunet", *sampling, "--output", "two", processes=2))
    assert output.count("60 images: two") == 1
    assert contents("two") == contents("one")
    process = program("-m", "diffunet", *sampling, "--output", "killed", processes=2)
    unfinished = Path("killed") / UNFINISHED
    deadline = time.monotonic() + 120
    while len(list(unfinished.glob("0*.json"))) < 3:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    kill_all(process, 9)
    process.wait()
    kept = {file.name: file.stat().st_mtime_ns for file in unfinished.glob("0*.json")}
    assert 3 <= len(kept) < 10
    images = {file: file.stat().st_mtime_ns for file in Path("killed").glob("0000[0-5].png")}
    finish(program("-m", "diffunet", *sampling, "--output", "killed"))
    assert contents("killed") == contents("one")
    assert images == {file: file.stat().st_mtime_ns for file in images}, "finished batches were sampled again"


@pytest.mark.slow
def test_two_processes_predict_the_bytes_of_one(small_predictor):
    assert run("train", "--config", "predictor.yaml") == 0
    prediction = "predict", "run", "pairs/images", "--probabilities"
    finish(program("-m", "diffunet", *prediction, "--output", "one"))
    output = finish(program("-m", "diffunet", *prediction, "--output", "two", processes=2))
    assert output.count("8 predictions: two") == 1
    assert contents("two") == contents("one")


@pytest.mark.slow
def test_two_processes_evaluate_as_one(small):
    train_small()
    evaluation = "evaluate", "run", "--num_images", "40", "--batch_size", "8"
    finish(program("-m", "diffunet", *evaluation, "--output", "one"))
    output = finish(program("-m", "diffunet", *evaluation, "--output", "two", processes=2))
    assert output.count("two: evaluation.json") == 1
    assert contents("two") == contents("one")
    assert list(Path("run/evaluations").iterdir()) == []


def test_an_evaluation_assisted_by_another_process_is_that_of_one(small):
    """Also under the conditions of held-out examples, whose files lie elsewhere in each process."""
    source = "{source: {type: image, by: [{downscale: 2}]}}"
    Path("small.yaml").write_text(Path("small.yaml").read_text().replace("{label: {type: label}}", source))
    train_small("--sample.guidance_scale", "1", "--train.steps", "2")
    trained = load_run("run")
    config = EvaluationConfig(data=trained.config().data)
    sampling = trained.config().sample.model_copy(update={"num_images": 6, "batch_size": 200, "steps": 2})
    alone = evaluate(trained, config, sampling)
    shared, folder = SharedSamples(Path("run/evaluations")), Path("run/evaluations")
    sample_for(trained, config, sampling, shared.assist)
    works = sorted(folder.iterdir())
    assert len(works) == 2, "samples of all classes, and of held-out examples"
    begun = {file: file.stat().st_mtime_ns for work in works for file in work.glob("0*")}
    assert evaluate(trained, config, sampling, collect=shared).record == alone.record
    assert begun == {file: file.stat().st_mtime_ns for file in begun}, "made again"
    shared.close()
    assert list(folder.iterdir()) == []

"""Training: exact resume, several processes, learning on real images, files that survive a kill."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import cnnkernels
from cnnkernels import data as data_module
from cnnkernels.train import Place, Run, Stopped, checkpoint, default_recipe, runs
from cnnkernels.train.augment import Augment, colour_components
from cnnkernels.train.recipe import lr_at

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = Path(__file__).parent / "data"
HERE = Place(0, 1, torch.device("cpu"))
# One thread: the sums then don't depend on how many cores the machine has to spare.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
ENVIRONMENT.pop("CNNKERNELS_DATA_DIR", None)


@pytest.fixture(scope="module")
def sample():
    return data_module.fashion_mnist(SAMPLE, download=False)


def small(**settings):
    """A recipe of a few seconds; every random part of training takes part in it."""
    base = dict(
        epochs=2, batch=50, limit=500, average=0.9, augment=("affine", "elastic", "crop", "flip")
    )
    return default_recipe("lenet5_modern", "fashion-mnist", **{**base, **settings})


def command(*arguments) -> list[str]:
    return [sys.executable, "-m", "cnnkernels.cli", "train", *map(str, arguments)]


def finish(process: subprocess.Popen, seconds: float = 120) -> str:
    output, _ = process.communicate(timeout=seconds)
    return output


def start(*arguments) -> subprocess.Popen:
    return subprocess.Popen(
        command(*arguments), env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


def weights(folder: Path) -> dict:
    return torch.load(folder / "model.pt", weights_only=True)["model"]


def assert_same(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


# --- learning ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "target"), [("lenet5_modern", 78.0), ("lenet5", 70.0)]
)  # chance: 10 %
def test_learns_the_sample(sample, model, target):
    torch.set_num_threads(1)
    recipe = default_recipe(model, "fashion-mnist", epochs=6, batch=32)
    before = Run(recipe, sample, HERE).evaluate().accuracy
    result = Run(recipe, sample, HERE).run()
    assert before < 30 and result.accuracy > target
    losses = [row["train_loss"] for row in result.history]
    assert losses[-1] < 0.6 * losses[0]


def test_same_seed_same_weights(sample):
    first, again, other = (
        Run(small(epochs=1, seed=seed), sample, HERE).run().model.state_dict() for seed in (1, 1, 2)
    )
    assert_same(first, again)
    name = "features.c1.weight"
    assert not torch.equal(first[name], other[name])


@pytest.fixture
def _no_interpreter():
    """No compiled CPU kernel takes fp16, and Triton's interpreter is far too slow to train in."""
    with cnnkernels.use("reference"):
        yield


@pytest.mark.usefixtures("_no_interpreter")
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("amp", ["none", "bf16", "fp16"])
def test_optimizers_and_autocast(sample, optimizer, amp):
    lr = 0.1 if optimizer == "sgd" else 2e-3
    recipe = small(epochs=2, optimizer=optimizer, amp=amp, lr=lr, weight_decay=1e-4, clip=5.0,
                   average=0.0, augment=(), channels_last=True, batch=20)  # fmt: skip
    result = Run(recipe, sample, HERE).run()
    assert result.accuracy > 40


def test_activation_checkpointing_changes_nothing(sample):
    """Batch norm's running averages too: a block that runs twice must move them once."""
    results = []
    for checkpointing in (False, True):
        recipe = default_recipe(
            "resnet20_cifar", "fashion-mnist", epochs=1, batch=20, limit=60, image_size=14,
            model_args={"width": 4}, checkpointing=checkpointing, average=0.5,
        )  # fmt: skip
        run = Run(recipe, sample, HERE)
        run.run()
        results.append((run.model.state_dict(), run.average.module.state_dict()))
    for plain, checkpointed in zip(*results):
        assert_same(plain, checkpointed)


def test_dropout_is_set_and_seeded(sample):
    arguments = {"side": 67, "width": 0.0625}
    recipe = default_recipe("alexnet", "fashion-mnist", epochs=1, batch=10, limit=20,
                            model_args=arguments, dropout=0.9, fit="resize")  # fmt: skip
    first, again = (Run(recipe, sample, HERE) for _ in range(2))
    assert {m.p for m in first.model.modules() if isinstance(m, torch.nn.Dropout)} == {0.9}
    assert_same(first.run().model.state_dict(), again.run().model.state_dict())
    with pytest.raises(ValueError, match=r"dropout is 0\.5, but lenet5_modern has no dropout"):
        Run(small(dropout=0.5), sample, HERE)


def test_learning_rates():
    recipe = small(lr=1.0, warmup=1.0, epochs=10, schedule="step", milestones=(0.5,), gamma=0.1)
    assert lr_at(recipe, 0, 10) == pytest.approx(0.1) and lr_at(recipe, 9, 10) == 1.0
    assert lr_at(recipe, 49, 10) == 1.0 and lr_at(recipe, 50, 10) == pytest.approx(0.1)
    cosine = replace(recipe, schedule="cosine", warmup=0.0)
    assert lr_at(cosine, 0, 10) == 1.0 and lr_at(cosine, 50, 10) == pytest.approx(0.5)
    assert lr_at(cosine, 99, 10) < 0.001


# --- stopping and going on -----------------------------------------------------------------------


@pytest.mark.usefixtures("_no_interpreter")
@pytest.mark.parametrize("amp", ["none", "fp16"])
def test_resume_in_the_middle_of_an_epoch(sample, tmp_path, amp):
    recipe = small(amp=amp)
    unbroken = Run(recipe, sample, HERE, tmp_path / "a") if (tmp_path / "a").mkdir() is None else 0
    expected = unbroken.run()
    (tmp_path / "b").mkdir()
    broken = Run(recipe, sample, HERE, tmp_path / "b")

    def stop(epoch, step, loss):
        broken.stop = epoch == 1 and step == 4

    broken.report = stop
    with pytest.raises(Stopped):
        broken.run()
    resumed = Run(recipe, sample, HERE, tmp_path / "b")
    resumed.load_state(checkpoint.load(tmp_path / "b" / checkpoint.NAME))
    assert (resumed.epoch, resumed.step) == (1, 4)
    result = resumed.run()
    assert_same(expected.model.state_dict(), result.model.state_dict())
    assert_same(unbroken.model.state_dict(), resumed.model.state_dict())
    for mine, theirs in zip(expected.history, result.history, strict=True):
        assert {**mine, "seconds": 0} == {**theirs, "seconds": 0}


def test_resume_after_a_kill(tmp_path):
    """SIGKILL in the middle of an epoch; --resume ends with the weights of an unbroken run."""
    common = ["lenet5_modern", "--data", "fashion-mnist", "--data-dir", SAMPLE, "--epochs", 3,
              "--limit", 1000, "--batch", 20, "--save-steps", 7]  # fmt: skip
    killed = start(*common, "--out", tmp_path / "killed")
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        path = tmp_path / "killed" / "checkpoint.pt"
        if path.exists() and (state := checkpoint.load(path))["epoch"] == 1 and state["step"]:
            break
        assert killed.poll() is None, finish(killed)
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait(20) == -signal.SIGKILL
    state = checkpoint.load(path)
    assert 0 < state["epoch"] * 50 + state["step"] < 150, "killed too late to show anything"
    rest, whole = (
        start("--resume", tmp_path / "killed"),
        start(*common, "--out", tmp_path / "whole"),
    )
    ends = [finish(process).splitlines()[-1] for process in (rest, whole)]
    assert ends[0] == ends[1] and ends[0].startswith("test accuracy: ") and ends[0].endswith(" %")
    assert_same(weights(tmp_path / "killed"), weights(tmp_path / "whole"))
    with (tmp_path / "killed" / "log.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3"]


def test_interrupt_saves_and_says_how_to_go_on(tmp_path):
    run = start("lenet5_modern", "--data", "fashion-mnist", "--data-dir", SAMPLE, "--epochs", 500,
                "--limit", 500, "--out", tmp_path / "run")  # fmt: skip
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "log.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    run.send_signal(signal.SIGINT)
    output = finish(run, 60)
    assert run.returncode == 130
    assert f"cnnkernels train --resume {tmp_path / 'run'}" in output and "Traceback" not in output
    state = checkpoint.load(tmp_path / "run" / "checkpoint.pt")
    assert 0 < state["epoch"] < 500


def test_a_checkpoint_is_the_old_one_until_the_new_one_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, {"epoch": 1})

    def die(state, file):
        Path(file).write_bytes(b"half a checkpo")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch, "save", die)
        checkpoint.save(path, {"epoch": 2})
    assert checkpoint.load(path)["epoch"] == 1
    assert list(tmp_path.iterdir()) == [path]
    checkpoint.save(path, {"epoch": 2})
    assert checkpoint.load(path)["epoch"] == 2


# --- several processes ---------------------------------------------------------------------------


def test_two_processes_give_the_single_process_result(tmp_path):
    """gloo, same global batch: the sums are grouped differently, so equal up to rounding."""
    common = ["lenet5_modern", "--data", "fashion-mnist", "--data-dir", SAMPLE, "--epochs", 2,
              "--limit", 400, "--batch", 40, "--optimizer", "sgd", "--lr", 0.02, "--device", "cpu"]  # fmt: skip
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
                "2", "-m", "cnnkernels.cli", "train"]  # fmt: skip
    two = subprocess.run(
        [*torchrun, *map(str, common), "--out", str(tmp_path / "two")],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert two.returncode == 0, two.stderr[-3000:]
    one = start(*common, "--out", tmp_path / "one")
    output = finish(one)
    assert one.returncode == 0, output
    a, b = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-5)
    assert output.splitlines()[-1] == two.stdout.splitlines()[-1]
    # Both processes took part: the log counts all images, and the answers of both.
    histories = [checkpoint.load(tmp_path / n / "checkpoint.pt")["history"] for n in ("one", "two")]
    for mine, theirs in zip(*histories, strict=True):
        for key in ("train_loss", "test_loss", "train_accuracy", "test_accuracy"):
            assert mine[key] == pytest.approx(theirs[key], rel=1e-3, abs=1e-3), key


# --- the command -----------------------------------------------------------------------------------


def test_ensemble_and_files(tmp_path, sample):
    recipe = small(epochs=2)
    settings = runs.Settings(recipe, 2, str(SAMPLE))
    runs.write_settings(tmp_path / "run", settings)
    results = runs.run_all(settings, sample, HERE, tmp_path / "run")
    together = runs.ensemble_accuracy(results, HERE)
    mean = (results[0].probabilities + results[1].probabilities) / 2
    expected = 100 * (mean.argmax(1) == sample.test.labels).double().mean()
    assert together == pytest.approx(float(expected))
    assert not torch.equal(results[0].probabilities, results[1].probabilities)
    for net in ("net0", "net1"):
        folder = tmp_path / "run" / net
        assert (folder / "curves.png").read_bytes()[:4] == b"\x89PNG"
        with (folder / "log.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 2 and 0 <= float(rows[-1]["test_accuracy"]) <= 100
    assert runs.read_settings(tmp_path / "run") == settings
    # Going on with a finished run trains nothing and gives the same answers.
    again = runs.run_all(settings, sample, HERE, tmp_path / "run")
    assert torch.equal(again[1].probabilities, results[1].probabilities)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lenet6"], "lenet6"),
        ([], "model is missing"),
        (["lenet5", "--data", "mnist"], "data is 'mnist'"),
        (["lenet5", "--data-dir", "/nonexistent"], "/nonexistent"),
        (["lenet5", "--lr", "0"], "lr is 0.0"),
        (["lenet5", "--lr", "nan"], "lr is nan"),
        (["lenet5", "--epochs", "0"], "epochs is 0"),
        (["lenet5", "--batch", "100000"], "batch is 100000"),
        (["lenet5", "--optimizer", "lion"], "sgd, adam, adamw"),
        (["lenet5", "--augment", "blur"], "affine, elastic"),
        (["lenet5", "--amp", "int8"], "none, bf16, fp16"),
        (["lenet5", "--device", "abacus"], "device is 'abacus'"),
        (["lenet5", "--ensemble", "0"], "ensemble is 0"),
        (["lenet5", "--model-arg", "wide"], "NAME=VALUE"),
        (["lenet5_modern", "--model-arg", "wide=3"], "wide"),
        (["lenet5_modern", "--loss", "map"], "only lenet5 has"),
        (["lenet5_modern", "--milestones", "x"], "milestones is 'x'"),
        (["lenet5_modern", "--label-smoothing", "2"], "label_smoothing is 2.0"),
        (["--resume", "/nonexistent"], "/nonexistent"),
    ],
)
def test_bad_input(arguments, message, tmp_path, monkeypatch, capsys):
    from cnnkernels.cli import main

    monkeypatch.chdir(tmp_path)
    extra = (
        [] if "--data-dir" in arguments or "--resume" in arguments else ["--data-dir", str(SAMPLE)]
    )
    if "--data" not in arguments and "--resume" not in arguments:
        extra += ["--data", "fashion-mnist"]
    with pytest.raises(SystemExit) as error:
        main(["train", *arguments, *extra, "--no-download"])
    assert error.value.code == 2
    shown = capsys.readouterr().err
    assert message in shown and "Traceback" not in shown
    assert not (tmp_path / "runs").exists(), "a run that can't start leaves no folder"


def test_bad_checkpoints(sample, tmp_path):
    path = tmp_path / checkpoint.NAME
    with pytest.raises(FileNotFoundError, match="does not exist"):
        checkpoint.load(path)
    path.write_bytes(b"PK\x03\x04 not a checkpoint")
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        checkpoint.load(path)
    torch.save({"weights": 1}, path)
    with pytest.raises(ValueError, match="not a checkpoint of cnnkernels"):
        checkpoint.load(path)
    torch.save({"format": 99}, path)
    with pytest.raises(ValueError, match="format 99"):
        checkpoint.load(path)
    run = Run(small(epochs=1), sample, HERE, tmp_path)
    run.save()
    with pytest.raises(ValueError, match=r"epochs \(1 there, 2 here\)"):
        Run(small(epochs=2), sample, HERE).load_state(checkpoint.load(path))


def test_out_is_not_overwritten_and_resume_takes_no_recipe(tmp_path, capsys):
    from cnnkernels.cli import main

    runs.write_settings(tmp_path, runs.Settings(small(), 1, str(SAMPLE)))
    common = ["--data-dir", str(SAMPLE), "--no-download"]
    for arguments, message in (
        (
            ["lenet5", "--data", "fashion-mnist", "--out", str(tmp_path), *common],
            "already holds a run",
        ),
        (["--resume", str(tmp_path), "--epochs", "9", "--lr", "1"], "leave out --epochs, --lr"),
    ):
        with pytest.raises(SystemExit):
            main(["train", *arguments])
        assert message in capsys.readouterr().err
    (tmp_path / "recipe.json").write_text(json.dumps({"recipe": {"model": "lenet5"}}))
    with pytest.raises(ValueError, match="not a run's settings"):
        runs.read_settings(tmp_path)


def test_training_on_image_files_does_not_depend_on_workers(tmp_path):
    pytest.importorskip("torchvision")
    from PIL import Image

    torch.set_num_threads(1)
    rng = torch.Generator().manual_seed(0)
    for part, n in (("train", 6), ("val", 2)):
        for label in ("cat", "dog"):
            (tmp_path / part / label).mkdir(parents=True)
            for i in range(n):
                pixels = torch.randint(256, (40, 50, 3), generator=rng, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(tmp_path / part / label / f"{i}.png")
    data = data_module.load(f"imagefolder:{tmp_path}", size=32)
    recipe = default_recipe("resnet20_cifar", "imagefolder", epochs=1, batch=4, warmup=0.0,
                            model_args={"width": 4}, augment=("crop", "flip", "colour"))  # fmt: skip
    here, workers = (Run(recipe, data, HERE, workers=n).run() for n in (0, 2))
    assert_same(here.model.state_dict(), workers.model.state_dict())
    assert here.probabilities.shape == (4, 2)


def test_strength_scales_the_augmentation():
    """At a strength next to nothing an image hardly changes; at 1 it does."""
    images = torch.rand(8, 1, 28, 28)
    for name in ("affine", "elastic", "colour"):
        changes = []
        for strength in (1e-4, 1.0):
            augment = Augment((name,), torch.eye(1), strength)
            drawn = augment.draw(8, torch.Generator().manual_seed(0))
            changes.append(float((augment(images, drawn) - images).abs().mean()))
        assert changes[0] < 1e-3 < 0.02 < changes[1], name


def test_crops_and_flips_move_pixels_only():
    images = torch.zeros(64, 1, 8, 8)
    images[:, 0, 4, 2] = 1
    augment = Augment(("crop", "flip"))
    changed = augment(images, augment.draw(64, torch.Generator().manual_seed(0)))
    assert changed.sum() == 64  # one bright pixel each, at most one pixel from where it was
    rows, columns = changed.flatten(1).argmax(1) // 8, changed.flatten(1).argmax(1) % 8
    assert set(rows.tolist()) == {3, 4, 5}
    assert set(columns.tolist()) == {1, 2, 3, 4, 5, 6}


def test_colour_components_are_the_pixels_covariance():
    pixels = torch.randint(0, 256, (50, 3, 4, 4), dtype=torch.uint8)
    components = colour_components(pixels)
    flat = pixels.movedim(1, -1).reshape(-1, 3).double() / 255
    covariance = torch.cov(flat.T, correction=0).float()
    torch.testing.assert_close(components.T @ components, covariance, rtol=1e-4, atol=1e-5)

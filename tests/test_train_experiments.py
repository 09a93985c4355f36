"""The classic experiments at a tiny scale on the committed sample: pictures, numbers, claims."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cnnkernels import data as data_module
from cnnkernels import models
from cnnkernels.cli import main
from cnnkernels.train import Place, default_recipe, runs
from cnnkernels.train.experiments.ablation import VARIANTS, full_parameters
from cnnkernels.train.experiments.filters import tiles
from cnnkernels.train.experiments.shift import Net

SAMPLE = Path(__file__).parent / "data"


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(name: str, out: Path, *arguments) -> dict:
    """Run the command; the numbers it wrote, once its picture has been looked at."""
    common = ["--data-dir", SAMPLE, "--data", "fashion-mnist", "--no-download", "--out", out]
    main_ok(["experiment", name, *map(str, [*common, *arguments])])
    picture = (out / f"{name}.png").read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n" and len(picture) > 5000
    return json.loads((out / f"{name}.json").read_text())


def main_ok(arguments: list[str]) -> None:
    try:
        main(arguments)
    except SystemExit as error:
        assert not error.code, error.code


def test_depth(tmp_path):
    result = run("depth", tmp_path, "--depths", "20,32", "--limit", 256, "--epochs", 1,
                 "--test-limit", 100)  # fmt: skip
    assert set(result["nets"]) == {f"{k}{d}_cifar" for k in ("plain", "resnet") for d in (20, 32)}
    for net in result["nets"].values():
        assert len(net["curve"]) == 4  # a point per step
        assert all(0 <= row["test_error"] <= 100 for row in net["curve"])
    nets = result["nets"]
    assert nets["plain20_cifar"]["parameters"] == nets["resnet20_cifar"]["parameters"]


def test_gradients_vanish_without_normalisation(tmp_path):
    result = run("gradients", tmp_path, "--depths", "20,56")
    ratio = {(row["net"], row["depth"]): row["ratio"] for row in result["rows"]}
    assert ratio["plain, Glorot init", 56] < 1e-6 < ratio["plain, Glorot init", 20] < 0.01
    assert ratio["plain, He init", 56] > 1e-3
    assert ratio["plain, batch norm", 56] > 20 * ratio["residual, batch norm", 56]


def test_ablation_counts_the_published_net(tmp_path):
    assert full_parameters(()) - full_parameters((7,)) == 16_781_312
    assert full_parameters(()) - full_parameters((3, 4, 6, 7)) == 51_110_656
    result = run("ablation", tmp_path, "--limit", 128, "--epochs", 1, "--test-limit", 100)
    rows = result["variants"]
    assert rows["all layers"]["parameters"] == 60_965_224 and len(rows) == len(VARIANTS)
    assert all(0 <= row["accuracy"] <= 100 for row in rows.values())


def test_shift_convolution_moves_along_and_pooling_forgives(tmp_path):
    result = run("shift", tmp_path, "--limit", 1000, "--epochs", 2, "--test-limit", 300)
    pooled, plain = (result["nets"][f"{word} pooling"] for word in ("with", "without"))
    assert max(pooled["equivariance_error"] + plain["equivariance_error"]) < 1e-5
    assert pooled["feature_change"][0] == plain["feature_change"][0] == 0
    assert pooled["feature_change"][1] < plain["feature_change"][1]
    assert pooled["accuracy"][0] > 55  # both have learned something
    assert plain["accuracy"][0] > 55
    assert pooled["accuracy"][0] - pooled["accuracy"][6] > 5  # and are not blind to a far shift


def test_shift_nets_differ_in_pooling_only():
    nets = [Net(1, 10, 40, pooling) for pooling in (True, False)]
    counts = [[tuple(p.shape) for p in net.parameters()] for net in nets]
    assert counts[0] == counts[1]
    x = torch.randn(2, 1, 40, 40)
    assert nets[0].features(x).shape == nets[1].features(x).shape


def test_filters_of_a_trained_run_and_of_a_state_dict(tmp_path):
    run_dir = tmp_path / "run"
    settings = runs.Settings(
        default_recipe("lenet5_modern", "fashion-mnist", epochs=1, limit=128), 1, str(SAMPLE)
    )
    data = data_module.fashion_mnist(SAMPLE, download=False)
    runs.run_all(settings, data, Place(0, 1, torch.device("cpu")), run_dir)
    result = run("filters", tmp_path, "--weights", run_dir)
    assert result["filters"] == 6 and result["shape"] == [6, 1, 5, 5]
    assert "lenet5_modern" in result["net"]
    torch.save(models.alexnet("torchvision").state_dict(), tmp_path / "alexnet.pth")
    result = run("filters", tmp_path, "--weights", tmp_path / "alexnet.pth", "--model", "alexnet")
    assert result["shape"] == [64, 3, 11, 11]


def test_tiles_stretch_each_filter():
    weights = torch.randn(4, 3, 5, 5) * torch.tensor([0.01, 1, 10, 0]).view(-1, 1, 1, 1)
    pictures = tiles(weights)
    assert pictures.shape == (4, 5, 5, 3)
    assert pictures[:3].amin((1, 2, 3)).tolist() == [0, 0, 0]
    assert pictures[:3].amax((1, 2, 3)).tolist() == [1, 1, 1]
    assert torch.isfinite(pictures).all()
    assert tiles(torch.randn(2, 1, 5, 5)).shape == (2, 5, 5, 3)


def test_lenet(tmp_path):
    result = run("lenet", tmp_path, "--limit", 256, "--epochs", 1, "--test-limit", 100)
    assert result["nets"]["lenet5"]["parameters"] == 60_000
    assert result["nets"]["lenet5_modern"]["parameters"] == 61_706


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["width"], "lenet, depth, gradients"),
        (["shift", "--depths", "20"], "depths is for depth and gradients"),
        (["depth", "--depths", "a"], "depths is 'a'"),
        (["depth", "--weights", "x"], "weights is for filters"),
        (["filters", "--weights", "/nonexistent", "--model", "alexnet"], "/nonexistent"),
        (["filters", "--weights", "/nonexistent"], "/nonexistent"),
        (["depth", "--depths", "21"], "plain21_cifar"),
    ],
)
def test_bad_input(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        main(["experiment", *arguments, "--data-dir", str(SAMPLE), "--out", str(tmp_path)])
    assert error.value.code == 2
    assert message in capsys.readouterr().err

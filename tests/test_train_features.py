"""Training's other promises: validation, compiled steps, determinism, memory, GPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from cnnkernels import data as data_module
from cnnkernels import models
from cnnkernels.analysis.memory import predict_training_memory
from cnnkernels.bench.rivals import eager_twin
from cnnkernels.cli import main
from cnnkernels.testing.saved import saved_bytes
from cnnkernels.train import Place, Run, default_recipe
from cnnkernels.train.batches import Batches, held_out

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = Path(__file__).parent / "data"
HERE = Place(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def sample():
    return data_module.fashion_mnist(SAMPLE, download=False)


# --- validation ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "share", "count"), [(10, 0.0, 0), (10, 0.2, 2), (7, 0.01, 1)])
def test_held_out_images_are_not_trained_on(n, share, count):
    rest, validation = held_out(n, share)
    assert len(validation) == count
    assert sorted([*rest.tolist(), *validation.tolist()]) == list(range(n))


def test_validation_never_looks_at_the_test_images(sample):
    recipe = default_recipe("lenet5_modern", "fashion-mnist", validation=0.25, batch=10)
    batches = Batches(sample, recipe, (1, 28), HERE.device)
    n = len(sample.train.labels)
    validation = torch.cat([labels for _, labels in batches.testing(100)])
    assert torch.equal(validation, sample.train.labels[held_out(n, 0.25)[1]])
    trained = torch.cat([labels for _, labels in batches.training(0)])
    assert len(validation) + batches.n == n and len(trained) == batches.n // 10 * 10


def test_validation_is_what_the_command_prints(tmp_path, capsys):
    with pytest.raises(SystemExit) as done:
        main(["train", "lenet5_modern", "--data", "fashion-mnist", "--data-dir", str(SAMPLE),
              "--epochs", "1", "--validation", "0.1", "--out", str(tmp_path)])  # fmt: skip
    assert not done.value.code
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("validation accuracy: ")
    assert "test loss" not in lines[-2] and "validation loss" in lines[-2]


def test_bad_validation():
    with pytest.raises(ValueError, match=r"validation is 1\.5; it must be at least 0 and at most"):
        default_recipe("lenet5", "digits", validation=1.5)


# --- compiled, deterministic ---------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("name", "arguments", "side"), [
    ("lenet5_modern", {}, 28), ("resnet20_cifar", {"width": 4}, 16),
    ("alexnet", {"side": 67, "width": 0.0625, "num_classes": 10, "dropout": 0}, 67),
])  # fmt: skip
def test_a_compiled_step_without_graph_breaks_gives_the_same_gradients(
    name, arguments, side, backend
):
    model = models.create(name, None, **arguments)
    x = torch.randn(4, model.input_size[0], side, side)
    labels = torch.arange(4)

    def gradients(net):
        model.zero_grad()
        F.cross_entropy(net(x), labels).backward()
        return [p.grad.clone() for p in model.parameters()]

    plain = gradients(model)
    torch._dynamo.reset()
    compiled = gradients(torch.compile(model, fullgraph=True, backend=backend))
    for a, b in zip(plain, compiled, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_deterministic_mode_allows_every_op_of_a_step(sample):
    """torch raises for an op that is not deterministic; on a CPU the result is the same without."""
    recipe = default_recipe("alexnet", "fashion-mnist", epochs=1, batch=10, limit=20, fit="resize",
                            model_args={"side": 67, "width": 0.0625}, deterministic=True)  # fmt: skip
    torch.use_deterministic_algorithms(True)
    try:
        strict = Run(recipe, sample, HERE).run().model.state_dict()
    finally:
        torch.use_deterministic_algorithms(False)
    free = Run(recipe, sample, HERE).run().model.state_dict()
    assert all(torch.equal(strict[name], free[name]) for name in strict)


# --- memory --------------------------------------------------------------------------------------


def test_alexnet_keeps_what_is_predicted_and_a_third_of_what_torch_keeps():
    ours = models.create("alexnet", None, side=67, width=0.25, num_classes=10)
    kept = {}
    for name, net in (("ours", ours), ("torch", eager_twin(ours))):
        x = torch.randn(8, 3, 67, 67)
        outside = sum(t.nbytes for t in (*net.parameters(), x))
        net.train()
        saved = saved_bytes(lambda net=net, x=x: net(x))
        kept[name] = predict_training_memory(net, 8).saved
        # Autograd holds the weights and the input too (biases not: nothing needs their values).
        unneeded = sum(p.nbytes for p in net.parameters() if p.dim() == 1)
        assert abs(saved - (outside - unneeded) - kept[name]) < 0.01 * kept[name]
    assert kept["ours"] < 0.35 * kept["torch"]


# --- GPUs ----------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("model", ["lenet5_modern", "alexnet", "resnet20_cifar"])
@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_learns_on_a_gpu(sample, model, amp):
    arguments = {"side": 67, "width": 0.125} if model == "alexnet" else {}
    recipe = default_recipe(model, "fashion-mnist", epochs=6, batch=50, amp=amp, warmup=0.5,
                            channels_last=True, model_args=arguments, fit="resize",
                            lr=2e-3, optimizer="adamw", augment=())  # fmt: skip
    result = Run(recipe, sample, Place(0, 1, torch.device("cuda", 0))).run()
    assert result.accuracy > 60


@pytest.mark.gpu
def test_deterministic_on_a_gpu(sample, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    recipe = default_recipe("alexnet", "fashion-mnist", epochs=1, batch=50, amp="bf16", fit="resize",
                            channels_last=True, model_args={"side": 67, "width": 0.125},
                            deterministic=True)  # fmt: skip
    torch.use_deterministic_algorithms(True)
    try:
        first, again = (
            Run(recipe, sample, Place(0, 1, torch.device("cuda", 0))).run() for _ in range(2)
        )
    finally:
        torch.use_deterministic_algorithms(False)
    states = first.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.gpu
@pytest.mark.slow
def test_compiled_training_on_a_gpu(sample):
    recipe = default_recipe("resnet20_cifar", "fashion-mnist", epochs=3, batch=50, amp="bf16",
                            channels_last=True, compile=True, warmup=0.5)  # fmt: skip
    assert Run(recipe, sample, Place(0, 1, torch.device("cuda", 0))).run().accuracy > 50


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL needs a GPU for each process")
def test_two_gpus_give_the_single_gpus_accuracy(tmp_path):
    common = ["train", "lenet5_modern", "--data", "fashion-mnist", "--data-dir", str(SAMPLE),
              "--epochs", "4", "--batch", "40", "--device", "cuda", "--quiet"]  # fmt: skip
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    accuracies = []
    for name, start in (("two", torchrun), ("one", [])):
        done = subprocess.run(
            [sys.executable, *start, "-m", "cnnkernels.cli", *common, "--out", str(tmp_path / name)],
            env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=200,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        accuracies.append(float(done.stdout.splitlines()[-1].split()[2]))
    assert abs(accuracies[0] - accuracies[1]) < 3

"""Every claim: the numbers behind it are the known ones, and the command shows them all."""

import csv
import io
import json

import pytest
from typer.testing import CliRunner

import cnnkernels
from cnnkernels import cli
from cnnkernels.analysis.claims import STATUS, agreement, claims, render_claims

KNOWN = {
    1: {"output": [96, 55, 55], "remainder_at_224": 1},
    2: {"weights": 34_848, "parameters": 34_944},
    3: {"output": [96, 27, 27], "parameters": 0},
    4: {"two_towers": 60_965_224, "one_tower": 62_378_344, "torchvision": 61_100_840},
    5: {"trainable": 60_000, "fixed": 840, "modern": 61_706},
    6: {"fewer": 16_781_312},
    7: {"fewer": 51_110_656},
    8: {"elements": 15_237_608, "bytes": 60_950_432},
    9: {"weights": 138_344_128, "parameters": 138_357_544},
    11: {"field": 7, "three": 27, "one": 49},
    12: {"naive": [672, 28, 28], "bottleneck": [480, 28, 28]},
    13: {"macs": 854_196_224, "flops": 1_708_392_448},
    14: {"macs": 271_351_808, "with_3x3_twice": 358_055_936},
    16: {
        "alexnet": 8, "vgg16": 16, "vgg19": 19, "googlenet": 22, "resnet34": 34, "resnet50": 50,
        "resnet101": 101, "resnet152": 152,
    },
    19: {"shared": 34_848, "unshared": 105_415_200, "dense": 44_892_064_800},
    21: {"plain20": 269_722, "plain56": 853_018, "resnet20": 269_722, "resnet56": 853_018},
    23: {"LeNet-5 S4": 16, "AlexNet pool5": 195, "VGG16 pool5": 212, "ResNet-18": 435},
}  # fmt: skip
DIFFER = {8, 14, 15, 17}


@pytest.fixture(autouse=True, scope="module")
def _compiled():
    """The compiled CPU kernels, where built: Triton's interpreter takes minutes for a network."""
    with cnnkernels.use("cpu"):
        yield


@pytest.fixture(scope="module")
def rows():
    return {row.number: row for row in claims()}


def test_all_rows_are_there(rows):
    assert list(rows) == list(range(1, 29))
    assert {row.status for row in rows.values()} <= set(STATUS)
    assert all(row.computed and row.claim and row.values for row in rows.values())


@pytest.mark.parametrize("number", KNOWN)
def test_known_values(rows, number):
    assert rows[number].values == KNOWN[number]


def test_where_lecture_and_computation_differ(rows):
    assert {n for n, row in rows.items() if row.status == "differs"} == DIFFER
    assert all(rows[n].why for n in DIFFER)
    agreeing = {n for n, row in rows.items() if row.status == "agrees"}
    assert agreeing == {*range(1, 14), 16, 18} - DIFFER


def test_vgg_rows(rows):
    found = rows[10].values["rows"]
    assert len(found) == 21
    assert found[0][1:] == [3_211_264, 1_728]
    assert found[18][1:] == [4096, 102_760_448]
    assert rows[10].computed == "21 of 21 rows agree"


def test_googlenet(rows):
    values = rows[15].values
    assert values["parameters"] == 6_998_552
    assert values["without_fc"] == 5_973_552
    assert values["with_heads"] == 13_378_280
    assert values["times_fewer"] == pytest.approx(8.711, abs=1e-3)


def test_measurements(rows):
    values = rows[20].values
    assert values["equivariance_error"] < 1e-6
    changes = list(values["change_by_pool"].values())
    assert changes == sorted(changes, reverse=True)  # wider windows, steadier features
    decays = rows[22].values
    assert decays["plain, no batch norm"] < 1e-10 < 1e-2 < decays["resnet, no batch norm"]
    assert decays["plain, batch norm"] > 1
    memory = rows[18].values
    assert memory["weights"] == 4 * 60_965_224
    assert memory["peak"] < 2 * 3 * 2**30


def test_literature_has_sources(rows):
    assert all(source for _, source in rows[26].values["ilsvrc"].values())
    assert "torchvision" in rows[25].why
    points = rows[25].values
    assert points["resnet50"]["gmac"] == pytest.approx(4.089, abs=1e-3)


def test_agreement():
    assert agreement(34_944, 35e3, 2)
    assert not agreement(34_944, 34e3, 2)
    assert not agreement(15_237_608, 24e6, 2)
    assert agreement(854_196_224, 854e6, 3)


def test_bad_arguments():
    with pytest.raises(ValueError, match="number is 99; claims are 1 to 28"):
        claims([99])
    with pytest.raises(ValueError, match="format is 'xml'"):
        render_claims([], "xml")


@pytest.fixture(scope="module")
def run():
    import typer

    from cnnkernels.analysis import commands

    app = typer.Typer()
    commands.register(app)
    return lambda *args: CliRunner().invoke(app, list(args), catch_exceptions=False)


def test_claims_command(run):
    text = run("claims", "8", "14").output
    assert "15,237,608" in text
    assert "353M" in text
    values = json.loads(run("claims", "5", "--format", "json").output)
    assert [row["number"] for row in values] == [5]
    assert values[0]["values"]["trainable"] == 60_000
    found = list(csv.DictReader(io.StringIO(run("claims", "1", "2", "--format", "csv").output)))
    assert [row["lecture"] for row in found] == ["55×55×96", "35K"]


def test_inspect_command(run):
    assert "60,965,224" in run("inspect", "alexnet").output
    values = json.loads(
        run("inspect", "resnet50", "--variant", "torchvision", "--format", "json").output
    )
    assert values["totals"]["macs"] == 4_089_184_256
    rows = run("inspect", "vgg16", "--layer", "features.*", "--format", "csv").output
    assert len(rows.splitlines()) == 1 + 18
    text = run("inspect", "lenet5_modern", "--batch", "2", "--input-size", "1x28x28").output
    assert "input 1×28×28, batch 2" in text
    assert "peak" in run("inspect", "lenet5", "--training-memory").output
    assert "resnet110_cifar" in run("inspect", "--list").output


def test_errors_of_the_command_line(capsys):
    for args, message in [
        (["inspect", "vgg61"], "name is 'vgg61'"),
        (["inspect", "vgg16", "--variant", "caffe"], "variant of vgg16 is 'caffe'"),
        (["inspect", "vgg16", "--input-size", "big"], "--input-size is 'big'"),
        (["inspect"], "MODEL is missing"),
        (["claims", "77"], "number is 77"),
    ]:
        with pytest.raises(SystemExit) as end:
            cli.main(args)
        assert end.value.code == 2
        assert message in capsys.readouterr().err

"""The command line: help, doctor, how errors end, and sub-command discovery."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import typer
from typer.testing import CliRunner

from cnnkernels import _lib, cli

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def run(capsys):
    """Runs ``cnnkernels ...`` in this process."""

    def run(*args):
        with pytest.raises(SystemExit) as exit:
            cli.main(list(args))
        captured = capsys.readouterr()
        return SimpleNamespace(
            returncode=exit.value.code or 0, stdout=captured.out, stderr=captured.err
        )

    return run


def test_help_lists_every_command_that_exists():
    result = subprocess.run(
        [sys.executable, "-m", "cnnkernels.cli", "--help"],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "doctor" in result.stdout
    for module, command in (("bench", "bench"), ("analysis", "inspect"), ("train", "train")):
        if cli._exists(f"cnnkernels.{module}.commands"):
            assert command in result.stdout


def test_version(run):
    import cnnkernels

    assert run("--version").stdout.strip() == cnnkernels.__version__


def test_doctor_json_states_facts_of_this_build(run):
    facts = json.loads(run("doctor", "--json").stdout)
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["machine"]["threads"] >= 1
    assert set(facts["backends"]) == {"reference", "cpu", "cuda", "triton", "cudnn"}
    assert facts["backends"]["reference"] == "available"
    assert "add_relu" in facts["ops"]
    loaded = facts["libraries"]["libcnnkernels_cpu.so"] == "loaded"
    assert loaded == (_lib.cpu_missing is None)


def test_doctor_says_why_a_backend_is_unavailable(run):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU: every backend may be available")
    facts = json.loads(run("doctor", "--json").stdout)
    assert facts["backends"]["cuda"].startswith("unavailable: ")
    assert facts["gpu"] == _lib.gpu_missing()


def test_doctor_prints_a_table(run):
    result = run("doctor")
    assert result.returncode == 0, result.stderr
    for word in ("libraries", "backends", "versions", torch.__version__):
        assert word in result.stdout


def test_unknown_command_and_option_exit_with_2(run):
    for args in (["frobnicate"], ["doctor", "--colour"]):
        result = run(*args)
        assert result.returncode == 2, result.stdout
        assert args[-1] in result.stderr and "Traceback" not in result.stderr


def failing_app(error):
    app = typer.Typer()

    @app.callback()
    def options(debug: bool = False):
        pass

    @app.command()
    def fail():
        raise error

    return app


@pytest.mark.parametrize(
    "error", [ValueError("width is 0; allowed is 1 or more"), RuntimeError("no such backend")]
)
def test_bad_input_is_one_line_and_exit_code_2(error, monkeypatch, capsys):
    monkeypatch.setattr(cli, "app", failing_app(error))
    monkeypatch.setattr(cli, "register_all", lambda app: None)
    with pytest.raises(SystemExit) as exit:
        cli.main(["fail"])
    assert exit.value.code == 2
    stderr = capsys.readouterr().err.splitlines()
    assert len(stderr) == 1 and str(error) in stderr[0]
    with pytest.raises(type(error)):
        cli.main(["fail", "--debug"])


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(cli, "app", failing_app(KeyError("bug")))
    monkeypatch.setattr(cli, "register_all", lambda app: None)
    with pytest.raises(KeyError):
        cli.main(["fail"])


def test_missing_module_is_absent_but_a_broken_one_is_an_error(tmp_path, monkeypatch):
    for name, text in (("whole", "def register(app): app.whole = True"), ("broken", "import nope")):
        package = tmp_path / name
        package.mkdir()
        (package / "__init__.py").write_text("")
        (package / "commands.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    target = typer.Typer()
    monkeypatch.setattr(cli, "COMMANDS", ("whole.commands", "cnnkernels.nothere.commands"))
    cli.register_all(target)
    assert target.whole
    target = typer.Typer()
    monkeypatch.setattr(cli, "COMMANDS", ("broken.commands",))
    with pytest.raises(ModuleNotFoundError, match="nope"):
        cli.register_all(target)


def test_commands_register_once_each():
    app = typer.Typer()

    @app.command()
    def first():
        pass

    @app.command()
    def second():
        pass

    cli.register_all(app)
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0 and "second" in result.stdout

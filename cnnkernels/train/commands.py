"""``cnnkernels train``: a model, data and a recipe from the command line; and ``experiment``."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Annotated

import typer

# What may be given together with --resume: none of it changes the result.
NOT_THE_RECIPE = {
    "resume", "out", "data_dir", "download", "device", "workers", "save_steps", "save_seconds",
    "quiet",
}  # fmt: skip


def _option(help: str, *names: str, **kwargs):
    return typer.Option(*names, help=help, **kwargs)


def _model_arguments(pairs: list[str]) -> dict | None:
    """["width=8", "shortcut=B"] as keyword arguments: Python literals, else strings."""
    arguments = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"model-arg is {pair!r}; it must have the form NAME=VALUE")
        try:
            arguments[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            arguments[name] = value
    return arguments or None


def _names(value: str | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    return tuple(name for name in value.split(",") if name and name != "none")


def train(
    context: typer.Context,
    model: Annotated[str | None, typer.Argument(help="A model of cnnkernels.models.")] = None,
    data: Annotated[
        str,
        _option("digits, fashion-mnist, cifar10, imagefolder:PATH or torchvision:CLASS."),
    ] = "digits",
    variant: Annotated[str | None, _option("paper or torchvision.")] = None,
    model_arg: Annotated[
        list[str] | None, _option("NAME=VALUE for the model's constructor; repeat for more.")
    ] = None,
    epochs: Annotated[int | None, _option("Passes over the training images.")] = None,
    batch: Annotated[int | None, _option("Images per step, all processes together.")] = None,
    optimizer: Annotated[str | None, _option("sgd, adam or adamw.")] = None,
    lr: Annotated[float | None, _option("Highest learning rate.")] = None,
    momentum: Annotated[float | None, _option("Of sgd (Nesterov's).")] = None,
    weight_decay: Annotated[float | None, _option("On weights; not on biases or norms.")] = None,
    schedule: Annotated[str | None, _option("cosine, step or constant.")] = None,
    milestones: Annotated[
        str | None, _option("Where 'step' lowers the rate: fractions of the run, 0.5,0.75.")
    ] = None,
    gamma: Annotated[float | None, _option("Factor at a milestone.")] = None,
    warmup: Annotated[float | None, _option("Epochs in which the rate rises from 0.")] = None,
    loss: Annotated[str | None, _option("cross-entropy, or map (lenet5's of 1998).")] = None,
    temperature: Annotated[float | None, _option("Outputs are divided by it.")] = None,
    label_smoothing: Annotated[float | None, _option("Between 0 and 1.")] = None,
    augment: Annotated[
        str | None, _option("Any of affine,elastic,crop,flip,colour, with commas; or none.")
    ] = None,
    strength: Annotated[float | None, _option("Factor on the augmentation's sizes.")] = None,
    dropout: Annotated[float | None, _option("In place of the model's own.")] = None,
    average: Annotated[
        float | None, _option("Decay of the exponential average of the weights; 0: none.")
    ] = None,
    clip: Annotated[float | None, _option("Largest gradient norm; 0: no limit.")] = None,
    image_size: Annotated[int | None, _option("Side of the images; default: the model's.")] = None,
    fit: Annotated[str | None, _option("Images a little too small: pad or resize.")] = None,
    limit: Annotated[int | None, _option("Train on so many of the images.")] = None,
    validation: Annotated[
        float | None,
        _option("Hold out this share of the training images and test on them: to choose recipes."),
    ] = None,
    seed: Annotated[int | None, _option("Of weights, order, augmentation and dropout.")] = None,
    ensemble: Annotated[int, _option("Train so many nets and average their answers.")] = 1,
    amp: Annotated[str | None, _option("Autocast: none, bf16 or fp16.")] = None,
    channels_last: Annotated[bool, _option("Use the NHWC memory format.")] = False,
    compile: Annotated[bool, _option("Use torch.compile.")] = False,
    checkpointing: Annotated[
        bool, _option("Activation checkpointing: less memory, one more forward pass.")
    ] = False,
    sync_batch_norm: Annotated[bool, _option("Batch norm over all processes (GPUs only).")] = False,
    deterministic: Annotated[
        bool, _option("Only deterministic GPU algorithms; on a CPU they always are.")
    ] = False,
    out: Annotated[
        Path | None, _option("Folder for checkpoint, log and curves; default runs/MODEL-DATA.")
    ] = None,
    resume: Annotated[
        Path | None, _option("Go on with the run in this folder, with its own settings.")
    ] = None,
    data_dir: Annotated[Path | None, _option("Where to look for the data first.")] = None,
    download: Annotated[bool, _option("Let torchvision download data.")] = True,
    device: Annotated[str, _option("auto, cpu, cuda or cuda:N.")] = "auto",
    workers: Annotated[int, _option("Processes that decode image files.")] = 0,
    save_steps: Annotated[int, _option("Also write a checkpoint after so many steps.")] = 0,
    save_seconds: Annotated[float, _option("Also write one after so many seconds.")] = 60.0,
    quiet: Annotated[bool, _option("Print nothing but the result.")] = False,
) -> None:
    """Train MODEL on real images; ends by printing the test accuracy in per cent.

    What is not given comes from the recipe of the model's family. Stop it with Ctrl-C, or lose the
    machine: --resume FOLDER goes on and ends with the very weights of an unbroken run. Several
    processes: torchrun --nproc-per-node N -m cnnkernels.cli train MODEL …
    """
    import torch
    from rich.console import Console

    from .. import data as data_module
    from . import runs
    from .distributed import place
    from .recipe import default_recipe

    if ensemble < 1:
        raise ValueError(f"ensemble is {ensemble}; it must be at least 1")
    if workers < 0:
        raise ValueError(f"workers is {workers}; it must be at least 0")
    if resume is not None:
        given = {
            name
            for name in context.params
            if str(context.get_parameter_source(name)).endswith("COMMANDLINE")
        }
        if changed := sorted(given - NOT_THE_RECIPE | ({"out"} & given)):
            names = ", ".join(
                name if name == "model" else "--" + name.replace("_", "-") for name in changed
            )
            raise ValueError(f"resume takes its settings from {resume}; leave out {names}")
        folder = resume
        settings = runs.read_settings(folder)
        if data_dir is not None:
            settings = runs.Settings(settings.recipe, settings.ensemble, str(data_dir))
    else:
        if model is None:
            raise ValueError(
                "model is missing: name one (cnnkernels train lenet5), or give --resume FOLDER"
            )
        points = None
        if milestones is not None:
            try:
                points = tuple(float(part) for part in milestones.split(","))
            except ValueError:
                raise ValueError(
                    f"milestones is {milestones!r}; it must be like 0.5,0.75"
                ) from None
        recipe = default_recipe(
            model, data, variant=variant, model_args=_model_arguments(model_arg or []), epochs=epochs,
            batch=batch, optimizer=optimizer, lr=lr, momentum=momentum, weight_decay=weight_decay,
            schedule=schedule, milestones=points, gamma=gamma, warmup=warmup, loss=loss,
            temperature=temperature, label_smoothing=label_smoothing, augment=_names(augment), strength=strength,
            dropout=dropout, average=average, clip=clip, image_size=image_size, fit=fit, limit=limit,
            validation=validation, seed=seed, amp=amp, channels_last=channels_last, compile=compile,
            checkpointing=checkpointing, sync_batch_norm=sync_batch_norm, deterministic=deterministic,
        )  # fmt: skip
        where = None if data_dir is None else str(data_dir.expanduser().absolute())
        settings = runs.Settings(recipe, ensemble, where)
        kind = data.partition(":")[0]
        folder = out or runs.fresh_folder(Path("runs"), f"{model}-{kind}")
        runs.check_unused(folder)

    console = None if quiet else Console(soft_wrap=True)
    with place(device) as here:
        size = settings.recipe.image_size or runs.input_side(settings.recipe)
        with here.first_alone():
            images = data_module.load(
                settings.recipe.data, settings.data_dir, size, download=download
            )
        if here.first and console:
            console.print(str(images), highlight=False)
            many = f"{here.world} process{'es' * (here.world > 1)}"
            threads = f"{torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"
            where = f"device {here.device}, {threads}, {many}; results in {folder}"
            console.print(where, highlight=False)
        if settings.recipe.deterministic:
            torch.use_deterministic_algorithms(True)
            torch.backends.cudnn.benchmark = False
        elif here.device.type == "cuda":
            torch.backends.cudnn.benchmark = True
        try:
            results = runs.run_all(
                settings, images, here, folder, console,
                workers=workers, save_steps=save_steps, save_seconds=save_seconds,
            )  # fmt: skip
        except runs.Stopped:
            if here.first:
                typer.echo(
                    f"Stopped; the checkpoint is written. Go on with: cnnkernels train --resume {folder}"
                )
            raise typer.Exit(130) from None
        together = runs.ensemble_accuracy(results, here) if len(results) > 1 else None
        if here.first:
            tested = settings.recipe.tested
            for i, result in enumerate(results if together is not None else ()):
                typer.echo(
                    f"net {i + 1} of {len(results)}: {tested} accuracy {result.accuracy:.2f} %"
                )
            typer.echo(
                f"{tested} accuracy: {results[0].accuracy if together is None else together:.2f} %"
            )


def experiment(
    name: Annotated[
        str, typer.Argument(help="lenet, depth, gradients, ablation, filters, shift, or all.")
    ],
    out: Annotated[Path, _option("Folder for NAME.png and NAME.json.")] = Path("out/experiments"),
    full: Annotated[bool, _option("The published size, in place of minutes on two cores.")] = False,
    data: Annotated[str | None, _option("In place of the experiment's own data.")] = None,
    epochs: Annotated[int | None, _option("Passes over the training images.")] = None,
    limit: Annotated[int | None, _option("Train on so many of the images.")] = None,
    test_limit: Annotated[int | None, _option("Test on so many of the images.")] = None,
    depths: Annotated[str | None, _option("Of depth and gradients: 20,56,110.")] = None,
    weights: Annotated[
        Path | None, _option("Of filters: a training run's folder, or a state_dict's file.")
    ] = None,
    model: Annotated[str | None, _option("Of filters: the model of that state_dict.")] = None,
    seed: Annotated[int, _option("Of everything random.")] = 0,
    data_dir: Annotated[Path | None, _option("Where to look for the data first.")] = None,
    download: Annotated[bool, _option("Let torchvision download data.")] = True,
    device: Annotated[str, _option("auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Run a classic experiment on real images: a picture, its numbers as JSON, a summary.

    lenet: both LeNet-5s on digits. depth: plain against residual nets of 20 and 56 layers.
    gradients: their norm by layer. ablation: AlexNet without some layers. filters: the first
    layer's. shift: moved images, with and without pooling.
    """
    from rich.console import Console

    from .distributed import place
    from .experiments import EXPERIMENTS, Setting

    names = list(EXPERIMENTS) if name == "all" else [name]
    if unknown := set(names) - set(EXPERIMENTS):
        allowed = ", ".join([*EXPERIMENTS, "all"])
        raise ValueError(f"name is {unknown.pop()!r}; allowed are {allowed}")
    for option, value, users in (
        ("depths", depths, ("depth", "gradients")), ("weights", weights, ("filters",)),
        ("model", model, ("filters",)),
    ):  # fmt: skip
        if value is not None and not set(users) & set(names):
            raise ValueError(f"{option} is for {' and '.join(users)}; name is {name!r}")
    extra = {"depth": {}, "filters": {"weights": weights, "model": model}}
    if depths is not None:
        try:
            chosen = tuple(int(part) for part in depths.split(","))
        except ValueError:
            raise ValueError(f"depths is {depths!r}; it must be like 20,56") from None
        extra["depth"] = extra["gradients"] = {"depths": chosen}
    console = Console(soft_wrap=True)
    with place(device) as here:
        if here.world > 1:
            raise ValueError(f"experiment runs in one process; torchrun started {here.world}")
        setting = Setting(
            out, here, data, None if data_dir is None else str(data_dir), download, full, seed,
            epochs, limit, test_limit, lambda line: console.print(line, highlight=False),
        )  # fmt: skip
        for one in names:
            result = EXPERIMENTS[one](setting, **extra.get(one, {}))
            console.print(f"{one}: {result['picture']}", highlight=False)


def register(app: typer.Typer) -> None:
    """Add ``train`` and ``experiment`` to the command line."""
    app.command()(train)
    app.command()(experiment)

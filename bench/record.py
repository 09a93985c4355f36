"""The JSON of a benchmark: written atomically after every case, valid whenever it is read."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

from . import environment, ratios

SCHEMA = "cnnkernels.bench/1"
# field → type; every file has them, readers may rely on them
FIELDS = {
    "schema": str,
    "created": str,
    "complete": bool,
    "command": str,
    "device": str,
    "machine": dict,
    "gpu": (dict, type(None)),
    "versions": dict,
    "settings": dict,
    "peaks": dict,
    "rows": list,
    "models": list,
}
ROW_FIELDS = {"suite": str, "case": str, "impl": str, "status": str}
STATUSES = ("ok", "unstable", "wrong", "impossible", "failed", "absent", "cut")
SAVE_INTERVAL_SECONDS = 2.0


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def check(content: object, where: str) -> dict:
    """The content of a benchmark file; ValueError naming what is wrong with it."""
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        found = content.get("schema") if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{where}: schema is {found!r}; this version reads {SCHEMA!r}")
    for field, kind in FIELDS.items():
        if not isinstance(content.get(field), kind):
            raise ValueError(f"{where}: field {field!r} is {content.get(field)!r:.60}")
    for index, row in enumerate(content["rows"]):
        for field, kind in ROW_FIELDS.items():
            if not isinstance(row, dict) or not isinstance(row.get(field), kind):
                raise ValueError(f"{where}: row {index} has no {field!r}")
        if row["status"] not in STATUSES:
            raise ValueError(f"{where}: row {index} has status {row['status']!r}")
    return content


def load(path: str | Path) -> dict:
    """Read a benchmark file; ValueError or OSError naming the file and what is wrong.

    The bound on the spread also holds for files written before there was one.
    """
    try:
        content = check(json.loads(Path(path).read_text()), str(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    bound = content["settings"].get("max_noise", ratios.MAX_NOISE)
    for row in content["rows"]:
        ratios.mark_unstable(row, bound)
    ratios.add_ratios(content["rows"])
    return content


class Record:
    """A benchmark being measured. As a context manager it saves whatever happens.

    Ctrl-C and SIGTERM inside the block end it: what was measured is saved with ``complete`` false
    and the process exits with 130.
    """

    def __init__(
        self, path: Path | None, device: torch.device, settings: object, command: str = ""
    ):
        self.path = path
        self.peaks = None  # a Peaks, whose facts are saved
        self._saved = 0.0
        self.content = {
            "schema": SCHEMA,
            "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "complete": False,
            "command": command or " ".join(["cnnkernels", *sys.argv[1:]]),
            "device": device.type,
            "machine": environment.machine(),
            "gpu": environment.gpu(device) if device.type == "cuda" else None,
            "versions": environment.versions(),
            "settings": dict(vars(settings)),
            "peaks": {},
            "rows": [],
            "models": [],
        }

    @property
    def rows(self) -> list[dict]:
        return self.content["rows"]

    def add(self, rows: list[dict]) -> None:
        self.rows.extend(rows)
        self._save_sometimes()

    def add_model(self, entry: dict) -> None:
        self.content["models"].append(entry)
        self._save_sometimes()

    def _save_sometimes(self) -> None:
        if time.monotonic() - self._saved > SAVE_INTERVAL_SECONDS:
            self.save()

    def save(self) -> None:
        if self.peaks is not None:
            self.content["peaks"] = self.peaks.facts()
        if self.path is not None:
            write_atomically(self.path, json.dumps(self.content, indent=1) + "\n")
        self._saved = time.monotonic()

    def __enter__(self) -> Record:
        def interrupt(signum, frame):
            raise KeyboardInterrupt

        try:
            self._handler = signal.signal(signal.SIGTERM, interrupt)
        except ValueError:  # not the main thread
            self._handler = None
        return self

    def __exit__(self, kind, error, traceback) -> bool:
        if self._handler is not None:
            signal.signal(signal.SIGTERM, self._handler)
        self.content["complete"] = kind is None
        self.save()
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            done = f"; {self.path} has the {len(self.rows)} rows measured" if self.path else ""
            print(f"interrupted{done}", file=sys.stderr)
            sys.exit(130)
        return False

"""Runs the suite part by part, each in a process of its own, and keeps what is finished.

A process per part means that a crash, a lack of memory or a time limit ends one part only, that its memory is free for
the next, and that the reference has the CPU alone. The process that starts them never opens the device.
"""

import dataclasses
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hfd_jax.core.errors import UserError, writing
from hfd_jax.core.logs import duration
from tools.bench.suite.page import page
from tools.bench.suite.settings import Job, Settings

RESULTS, PAGE = "suite.json", "suite.md"
SHORTEST = 20.0  # seconds that a part gets even if the time is used up


@dataclasses.dataclass(frozen=True)
class Part:
    """One part of the suite.

    Attributes:
      function: "module:name" in this package: Job -> JSON-ready results. "errors" in them names what failed within the
        part, "skipped" says why nothing was measured.
      expected: seconds that it is expected to take on an accelerator, for the time left.
      on_cpu: gives JAX only the CPU.
    """

    function: str
    expected: float
    on_cpu: bool = False


PARTS = {
    "device": Part("speed:device", 20),
    "reference": Part("numbers:reference", 45, on_cpu=True),
    "numbers": Part("numbers:compare", 60),
    "speed": Part("speed:measure", 120),
    "peer": Part("speed:peer", 75, on_cpu=True),
    "training": Part("training:train", 150),
}
Launch = Callable[[str, str, float], dict[str, Any]]


def run(settings: Settings, folder: str, launch: Launch | None = None) -> dict[str, Any]:
    """Runs what is not finished yet in `folder`; returns the results, which are also in RESULTS and PAGE there.

    Args:
      settings: the sizes.
      folder: created if missing; the results of another run with the same settings are continued.
      launch: (name, folder, seconds) -> results of a part; default: in a process of its own.

    Raises:
      UserError: the folder holds results with other settings, or cannot be written.
    """
    document = opened(settings, folder)
    parts, start = document["parts"], time.monotonic()
    for number, (name, part) in enumerate(PARTS.items(), 1):
        if parts.get(name, {}).get("state") in ("done", "skipped"):
            continue
        rest = sum(PARTS[later].expected for later in list(PARTS)[number - 1 :])
        print(
            f"[{number}/{len(PARTS)}] {name}: about {duration(part.expected)}, {duration(rest)} to the end", flush=True
        )
        left = max(settings.minutes * 60 - (time.monotonic() - start), SHORTEST)
        began = time.monotonic()
        found = (launch or in_process)(name, folder, left)
        parts[name] = found | {"seconds": time.monotonic() - began, "state": state_of(found)}
        write(document, folder)
        print(
            f"[{number}/{len(PARTS)}] {name}: {parts[name]['state']} after {duration(parts[name]['seconds'])}",
            flush=True,
        )
        failures = {name: found["failed"]} if "failed" in found else {}
        for what, error in (failures | found.get("errors", {})).items():
            print(f"  {what}: {error}", flush=True)
    return document


def opened(settings: Settings, folder: str) -> dict[str, Any]:
    """The document in a folder, or a new one, which is written."""
    path, wanted = Path(folder, RESULTS), json.loads(json.dumps(dataclasses.asdict(settings)))
    if path.exists():
        document = json.loads(path.read_text(encoding="utf-8"))
        other = [f"{k} {document['settings'].get(k)!r}" for k, v in wanted.items() if document["settings"].get(k) != v]
        if other:
            raise UserError(
                f"--out={folder}: holds a suite with other settings: {', '.join(other)}; expected a new folder"
            )
        return document
    document = {"settings": wanted, "parts": {}}
    with writing(folder):
        os.makedirs(folder, exist_ok=True)
    write(document, folder)
    return document


def write(document: dict[str, Any], folder: str) -> None:
    """Writes RESULTS and PAGE, each as a whole."""
    for name, text in ((RESULTS, json.dumps(document, indent=1)), (PAGE, page(document))):
        path = os.path.join(folder, name)
        with writing(path):
            Path(f"{path}.tmp").write_text(text, encoding="utf-8")
            os.replace(f"{path}.tmp", path)


def state_of(found: dict[str, Any]) -> str:
    if "failed" in found:
        return "failed"
    return "skipped" if "skipped" in found else "done"


def in_process(name: str, folder: str, seconds: float) -> dict[str, Any]:
    """Runs a part in a process of its own; "failed" says why it gave no result."""
    log, result = os.path.join(folder, f"{name}.log"), Path(folder, f"{name}.json")
    result.unlink(missing_ok=True)
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": os.path.join(os.path.abspath(folder), "compiled")}
    environment.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")  # the card is the suite's alone
    if PARTS[name].on_cpu:
        environment["JAX_PLATFORMS"] = "cpu"
    command = [sys.executable, "-m", "tools.bench.suite.run", name, folder]
    failure = {}
    with open(log, "w", encoding="utf-8") as errors:
        process = subprocess.Popen(command, env=environment, stderr=errors)
        try:
            code = process.wait(seconds)
            if code:
                failure = {"failed": f"exit status {code}: {last_line(log)}; see {name}.log"}
        except subprocess.TimeoutExpired:
            failure = {"failed": f"stopped after {duration(seconds)}, the time that was left"}
        finally:
            process.kill()
            process.wait()
    found = json.loads(result.read_text(encoding="utf-8")) if result.exists() else {}
    result.unlink(missing_ok=True)
    return found | failure


def last_line(path: str) -> str:
    lines = Path(path).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:500] if lines else "no message"


def here(name: str, folder: str, seconds: float = 0.0) -> dict[str, Any]:
    """Runs a part in this process, without a time limit."""
    document, result = json.loads(Path(folder, RESULTS).read_text(encoding="utf-8")), Path(folder, f"{name}.json")
    module, function = PARTS[name].function.split(":")

    def keep(found: dict[str, Any]) -> None:
        temporary = result.with_suffix(".tmp")
        temporary.write_text(json.dumps(found), encoding="utf-8")
        temporary.replace(result)

    def say(text: str) -> None:
        print(f"  {text}", flush=True)

    job = Job(Settings(**document["settings"]), document["parts"], folder, say, keep)
    found = getattr(importlib.import_module(f"tools.bench.suite.{module}"), function)(job)
    keep(found)
    return found


if __name__ == "__main__":
    here(*sys.argv[1:])

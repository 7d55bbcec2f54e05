"""Time from the command to its first result: `--help`, and the first training step of `train`.

Each run is a process of its own with the user's caches in a folder of this benchmark, empty for the
first run ("cold") and as the first left them for the others ("warm"). PyTorch's twin takes its
first step on the same batch size in a process of its own. Prints one JSON line.

    python -m benchmarks.startup --model scratch --repeats 5
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks.comparison import HUGE_PAGES
from benchmarks.processes import machine

# The command line, ending after the first step.
TRAIN = """
import os, sys
from eqxunet.cli import app, main
main()  # sets what JAX reads when it is imported
import jax
from eqxunet.runs import epochs
fit = epochs.fit_in_phases
def first_step(*args, **options):
    for _, state, metrics in fit(*args, **options):
        jax.block_until_ready(metrics)
        os._exit(0)
epochs.fit_in_phases = first_step
app(sys.argv[1:])
"""
TORCH = """
import sys
from benchmarks import torch_models
import torch
model = torch_models.network(sys.argv[1])
model = model.to(memory_format=torch.channels_last)
optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-3)
model(torch.rand(16, 3, 128, 128)).square().mean().backward()
optimizer.step()
"""


def seconds(*command: str, cwd: str, environment: dict[str, str]) -> float:
    start = time.perf_counter()
    subprocess.run(
        command, cwd=cwd, env=os.environ | environment, check=True, stdout=subprocess.DEVNULL
    )
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description="Time from the command to its first result.")
    parser.add_argument("--model", choices=("scratch", "resnet10"), default="scratch")
    parser.add_argument("--repeats", type=int, default=5, help="warm runs")
    parser.add_argument("--against", default="torch", help="torch, or nothing")
    arguments = parser.parse_args()
    root = os.getcwd()
    train = ["train", "--encoder", arguments.model, "--data", "synthetic", "--limit", "100"]
    if arguments.model == "resnet10":
        train += ["--weights", "random"]
    commands = {
        "help": [sys.executable, os.path.join(root, "cli.py"), "--help"],
        "first_step": [sys.executable, "-c", TRAIN, *train],
    }
    if arguments.against:
        commands["torch_first_step"] = [sys.executable, "-c", TORCH, arguments.model]
    with tempfile.TemporaryDirectory() as folder:
        environment = {"PYTHONPATH": root, "XDG_CACHE_HOME": folder, **HUGE_PAGES}
        cold, warm = {}, {name: [] for name in commands}
        for name, command in commands.items():
            cold[name] = seconds(*command, cwd=folder, environment=environment)
        for _ in range(arguments.repeats):
            for name, command in commands.items():
                warm[name].append(seconds(*command, cwd=folder, environment=environment))
    record = {
        "benchmark": "startup",
        "model": arguments.model,
        "repeats": arguments.repeats,
        "cold": cold,
        "warm": {name: statistics.median(values) for name, values in warm.items()},
        "machine": machine(),
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()

"""Does iMAML's memory depend on the number of inner steps, and does its gradient converge?

    python -m benchmarks.implicit [--steps 1 4 16 64]

Memory: Omniglot-sized characters (4 tasks, 5 ways, 1 shot, 64 filters), one meta-gradient of MAML and of iMAML in a
process of its own; peak is the most memory it ever held, PyTorch itself included. Convergence: a small sine regressor
in double precision, adapted until the inner loss is at its minimum; the error, in norm, of iMAML's gradient for every
number of solver steps, against the implicit gradient from the whole Hessian, solved exactly.
"""

import argparse
import json
import os
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.memory import RESULTS, ROOT, peak_mib
from headstart import IMAML, MAML, SGD, Task
from headstart.models import Conv4
from headstart.tasks import Sinusoids
from headstart.training.files import write_atomically, write_json
from headstart.training.run import environment
from headstart.types import Batch, generator

STEPS = (1, 4, 16, 64)
SOLVER_STEPS = (1, 2, 5, 10, 20, 40, 80)
LEARNERS = {"MAML": MAML, "iMAML": IMAML}


def peak_of(learner: str, steps: int) -> int:
    """Peak MiB of this process after one meta-gradient."""
    torch.manual_seed(0)
    images, labels = torch.rand(4, 5, 1, 28, 28), torch.arange(5).expand(4, 5)
    batch = Batch(images, labels)
    settings = {"recompute": False} if learner == "MAML" else {}
    made = LEARNERS[learner](Conv4(5), F.cross_entropy, inner=SGD(0.4), steps=steps, norm="batch", **settings)
    made(Task(batch, batch)).backward()
    return peak_mib()


def peak_apart(learner: str, steps: int) -> int | str:
    """`peak_of` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.implicit", "--measure", learner, str(steps)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, check=False
    )
    return json.loads(done.stdout) if done.returncode == 0 else f"exit status {done.returncode}"


def errors() -> dict[int, float]:
    """Relative error of iMAML's gradient by solver steps."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    tasks = Sinusoids(shots=10).sample(1, generator(0, "implicit"))
    tasks = Task(*(Batch(*(leaf.double() for leaf in batch)) for batch in tasks))
    found = {}
    for solver_steps in SOLVER_STEPS:
        learner = IMAML(model, F.mse_loss, inner=SGD(0.05), steps=5000, strength=1.0, solver_steps=solver_steps)
        grads = torch.autograd.grad(learner(tasks), list(learner.parameters()))
        given = torch.cat([g.flatten() for g in grads])
        expected = exact(learner, tasks)
        found[solver_steps] = float((given - expected).norm() / expected.norm())
    return found


def exact(learner: IMAML, tasks: Task) -> torch.Tensor:
    """`lambda (H + lambda I)^-1 grad L_Q` at the adapted parameters, with H written out."""
    task = Task(*(Batch(*(leaf[0] for leaf in batch)) for batch in tasks))
    adapted = learner.adapt(task.support)
    shapes = {name: p.shape for name, p in adapted.named_parameters()}
    sizes = [shape.numel() for shape in shapes.values()]
    at = torch.cat([p.detach().flatten() for p in adapted.parameters()])

    def loss(vector: torch.Tensor, batch: Batch) -> torch.Tensor:
        parts = {n: part.view(shapes[n]) for n, part in zip(shapes, vector.split(sizes), strict=True)}
        return F.mse_loss(torch.func.functional_call(adapted, parts, (batch.inputs,)), batch.targets)

    hessian = torch.func.hessian(loss)(at, task.support)
    slope = torch.func.grad(loss)(at, task.query)
    return learner.strength * torch.linalg.solve(hessian + learner.strength * torch.eye(len(at)).double(), slope)


def markdown(result: dict[str, Any]) -> str:
    """The result as two tables."""
    steps, peaks = result["steps"], result["peak_mib"]
    rows = [
        f"iMAML, {result['date']}: torch {result['environment']['torch']}, {result['environment']['processor']}. Made "
        "by `python -m benchmarks.implicit`.",
        "",
        f"| peak MiB after inner steps | {' | '.join(map(str, steps))} |",
        f"| --- |{' ---: |' * len(steps)}",
    ]
    rows += [f"| {learner} | {' | '.join(map(str, peaks[learner]))} |" for learner in peaks]
    found = result["errors"]
    rows += [
        "",
        f"| solver steps | {' | '.join(found)} |",
        f"| --- |{' ---: |' * len(found)}",
        f"| error of the gradient | {' | '.join(f'{e:.1e}' for e in found.values())} |",
    ]
    return "\n".join(rows) + "\n"


def main() -> None:
    """Measure, and write JSON and Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(peak_of(options.measure[0], int(options.measure[1])))
        return
    peaks = {learner: [peak_apart(learner, steps) for steps in options.steps] for learner in LEARNERS}
    result = {
        "date": str(date.today()),
        "environment": environment(),
        "steps": options.steps,
        "peak_mib": peaks,
        "errors": {str(steps): error for steps, error in errors().items()},
    }
    write_json(options.out / f"implicit-{result['date']}.json", result)
    write_atomically(options.out / "implicit.md", markdown(result).encode())
    print(markdown(result))


if __name__ == "__main__":
    main()

"""Stop a training and go on later, from Python: the numbers are those of a training that was never stopped.

The command line does the same: Ctrl-C (or a kill), then the same command with `--resume`.

    python examples/resuming.py
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from headstart import recipes
from headstart.recipes import work
from headstart.training.run import Run


def train(folder: Path, iterations: int, stop_at: int | None = None) -> list[float]:
    """Meta-losses of a run in `folder`, which goes on where it was and stops after `stop_at` iterations."""
    recipe = replace(recipes.experiment("sinusoid-5shot").recipe, iterations=iterations, log_every=1, mode="eager")
    run = Run(folder)
    trainer = recipe.trainer(run, None, "cpu")
    if run.resumable:
        trainer.resume()
    run.start(work.config_of("sinusoid-5shot", recipe))
    trainer.train(stop=lambda: trainer.iteration == stop_at)  # which writes a checkpoint
    return [line["meta_loss"] for line in run.metrics("train")]


def main(iterations: int = 60) -> None:
    with tempfile.TemporaryDirectory() as folder:
        whole = train(Path(folder) / "whole", iterations)
        train(Path(folder) / "parts", iterations, stop_at=iterations // 2)
        parts = train(Path(folder) / "parts", iterations)
    assert whole == parts
    print(f"{iterations} meta-losses, stopped after {iterations // 2} and resumed: the same, to the last bit.")
    print(f"The last is {torch.tensor(parts[-1]):.6f} in both.")


if __name__ == "__main__":
    main()

"""Meta-learn sine waves, then learn a new one from five points: the paper's first experiment, in twenty lines.

python examples/sinusoid.py
"""

import torch
from torch import nn

import headstart


def main(iterations: int = 2000) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))
    learner = headstart.MAML(model, nn.functional.mse_loss, inner=headstart.SGD(lr=0.01), steps=1)
    optimizer = torch.optim.Adam(learner.parameters(), lr=1e-3)
    for _, tasks in zip(range(iterations), headstart.tasks.Sinusoids(shots=10).batches(size=25, seed=0), strict=False):
        optimizer.zero_grad()
        learner(tasks).backward()
        optimizer.step()

    def wave(x: torch.Tensor) -> torch.Tensor:
        return 3.0 * torch.sin(x - 0.5)

    points = torch.tensor([[-4.0], [-2.0], [0.5], [2.0], [4.5]])
    support, x = headstart.Batch(points, wave(points)), torch.linspace(-5, 5, 101)[:, None]
    for steps in (0, 1, 5):
        adapted = learner.adapt(support, steps=steps)  # an ordinary nn.Module
        print(f"mean squared error after {steps} steps: {nn.functional.mse_loss(adapted(x), wave(x)).item():.3f}")


if __name__ == "__main__":
    main()

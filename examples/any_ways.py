"""Train on tasks of 5 classes, then adapt to tasks of 3 and of 7: the head is made for each task.

The characters are generated, so no data is needed. `SharedHead` starts the head of every task with one and the same
row for each class; there may be any number of them, and their order does not matter.

    python examples/any_ways.py
"""

import argparse

import torch
from torch.nn.functional import cross_entropy

import headstart
from headstart.losses import accuracy
from headstart.models import Conv4
from headstart.tasks import Episodes, glyphs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=150)
    parser.add_argument("--tasks", type=int, default=8, help="tasks per iteration")
    parser.add_argument("--classes", type=int, default=60, help="characters to train on")
    parser.add_argument("--filters", type=int, default=16, help="of each convolution")
    options = parser.parse_args()

    torch.manual_seed(0)
    model = Conv4(5, filters=options.filters)
    learner = headstart.SharedHead(model, cross_entropy, ways=5, inner=headstart.SGD(lr=1.0), steps=2)
    optimizer = torch.optim.Adam(learner.parameters(), lr=3e-3)
    drawn = glyphs.store(options.classes, examples=6)
    source = Episodes(drawn, ways=5, shots=1, queries=3, rotations="draw")
    for iteration, tasks in zip(range(1, options.iterations + 1), source.batches(options.tasks), strict=False):
        optimizer.zero_grad()
        loss = learner(tasks)
        loss.backward()
        optimizer.step()
        if iteration % 25 == 0 or iteration == options.iterations:
            print(f"{iteration:4d}  loss {loss.item():.3f}", flush=True)

    unseen = glyphs.store(20, examples=6, part="test")
    for ways in (3, 5, 7):
        tasks = Episodes(unseen, ways=ways, shots=1, queries=3).sample(50, torch.Generator().manual_seed(1))
        outputs = learner.predict(tasks)[:, -1]  # [tasks, examples, ways], after the last step
        mean = float(accuracy(outputs, tasks.query.targets).mean())
        print(f"{ways} ways, new characters: {mean:.0%} right after {learner.steps} steps (chance {1 / ways:.0%}).")

    support = headstart.Batch(tasks.support.inputs[0], tasks.support.targets[0])
    adapted = learner.adapt(support)  # an ordinary nn.Module, with an output for each of the 7 classes
    print(f"Adapted to 7 classes, the head is {adapted.head}.")


if __name__ == "__main__":
    main()

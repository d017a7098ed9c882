import pytest
import torch
from torch import nn

import headstart
from headstart.export.program import ExportError, adaptation, predictor
from headstart.models import MLP
from headstart.models.norm import normalizer
from headstart.types import Batch, Task

cross_entropy = nn.functional.cross_entropy


def images(ways, shots, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return Batch(torch.rand(ways * shots, 1, 8, 8, generator=rng), torch.arange(ways).repeat(shots))


def points(count, seed=0):
    x = torch.rand(count, 1, generator=torch.Generator().manual_seed(seed)) * 10 - 5
    return Batch(x, x.sin())


def check(learner, support, queries, steps, exported):
    expected = learner.predict([Task(support, Batch(queries, ()))], steps, "support")[0]
    found = exported.program.module()(support.inputs, support.targets, queries)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def network(outputs, kind="batch"):
    """Two convolutions with a normaliser, of which every operation there is in deeper networks."""
    torch.manual_seed(1)
    first, second = nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 3, stride=2, padding=1, bias=False)
    norms = [normalizer(kind, 8, images=True) for _ in range(2)]
    return nn.Sequential(first, norms[0], nn.ReLU(), second, norms[1], nn.ReLU(), nn.Flatten(), nn.Linear(32, outputs))


@pytest.mark.parametrize(
    "made",
    [
        lambda: headstart.MAML(network(3), cross_entropy, inner=headstart.SGD(0.4)),
        lambda: headstart.SharedHead(network(1), cross_entropy, inner=headstart.SGD(0.4)),
        lambda: headstart.ProtoMAML(network(1), cross_entropy, inner=headstart.SGD(0.1)),
        lambda: headstart.MetaSGD(network(3, "task-instance"), cross_entropy, lr=0.1, adapt_only=("*", "!*.blend_*")),
        lambda: headstart.MAML(network(3, "group"), cross_entropy, inner=headstart.Adam(0.01)),
    ],
    ids=["batch norm", "shared head", "prototypes", "TaskNorm", "group norm"],
)
def test_adaptation_is_the_learners_own(made):
    """Recorded on one support set, it predicts as the learner does on another, larger one, and for one query."""
    learner = made()
    exported = adaptation(learner, images(3, 2), images(3, 1).inputs, 2)
    check(learner, images(3, 3, seed=1), images(1, 1, seed=2).inputs, 2, exported)
    assert exported.inputs == ("support_inputs", "support_targets", "query_inputs")
    assert learner.vectorize == "auto"


def test_regression_takes_any_number_of_points_and_momentum():
    torch.manual_seed(0)
    learner = headstart.MAML(MLP(1, 1, (8, 8)), nn.functional.mse_loss, inner=headstart.Momentum(0.02))
    exported = adaptation(learner, points(4), points(5).inputs, 3)
    for count in (1, 7):
        check(learner, points(count, seed=3), points(1).inputs, 3, exported)


def test_numbers_can_be_fixed():
    learner = headstart.MAML(MLP(1, 1, (4,)), nn.functional.mse_loss)
    exported = adaptation(learner, points(4), points(2).inputs, 1, open_support=False)
    assert exported.axes == (None, None, "queries")
    with pytest.raises((AssertionError, RuntimeError), match="4"):
        exported.program.module()(points(5).inputs, points(5).targets, points(2).inputs)


def test_the_predictor_gives_the_classes_and_their_probabilities():
    model = network(5).eval()
    exported = predictor(model, images(1, 3).inputs, classes=2)
    asked = images(1, 1, seed=4).inputs
    outputs, probabilities = exported.program.module()(asked)
    torch.testing.assert_close(outputs, model(asked)[:, :2])
    torch.testing.assert_close(probabilities, model(asked)[:, :2].softmax(-1))


def test_the_program_names_no_file_of_this_machine():
    exported = adaptation(headstart.MAML(MLP(1, 1, (4,)), nn.functional.mse_loss), points(4), points(2).inputs, 1)
    assert all(node.stack_trace is None for node in exported.program.graph.nodes)
    assert exported.program.example_inputs is None


class Rounding(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, x):
        outputs = self.layer(x)
        return outputs * 2 if outputs.sum() > 0 else outputs


class Noisy(Rounding):
    def forward(self, x):
        return self.layer(x) + torch.randn_like(x)


@pytest.mark.parametrize(("module", "told"), [(Rounding, "cannot be recorded"), (Noisy, "draws random numbers")])
def test_what_cannot_be_recorded_is_refused(module, told):
    with pytest.raises(ExportError, match=told):
        adaptation(headstart.MAML(module(), nn.functional.mse_loss), points(4), points(2).inputs, 1)

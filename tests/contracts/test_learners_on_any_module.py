"""Every public learner on every architecture of `modules.py`; where one cannot, it says what is missing."""

import copy
from typing import Any

import pytest
import torch
from contracts.learners import LEARNERS, build
from contracts.modules import CASES, WAYS
from reference import cast, meta_gradient, unstack
from torch import Tensor, nn
from torch.testing import assert_close

from headstart import MAML, Batch, Task
from headstart.vectorize import stack

TASKS = 2
HEADS = ["shared head", "zero head", "ProtoNet", "Proto-MAML"]
OWN = "has no trainable parameters of its own.*shared with another layer.*: name the head's"
MADE = "is made for each task: its weight and bias must be its own and adapt"
CANNOT: dict[tuple[str, str], str] = {
    ("ANIL", "tied weights"): OWN,
    ("BOIL", "tied weights"): OWN,
    **{(name, case): MADE for name in HEADS for case in ("tied weights", "weight norm")},
}
"""What is missing, by learner and module."""
NOTHING_TO_LEARN = [(name, "frozen and unused parameters") for name in ("zero head", "ProtoNet", "Proto-MAML")]
"""The body is frozen, and the head made from nothing that is learned."""
LAST_BUT_UNUSED = ["frozen and unused parameters"]
"""Modules whose last linear layer does not make the outputs: the head has to be named."""


def tasks_for(case: str) -> Task:
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(CASES[case].examples) % WAYS
    tasks = [Task(*(Batch(CASES[case].inputs(len(labels), rng), labels) for _ in range(2))) for _ in range(TASKS)]
    return cast(stack(tasks), torch.float64)


def learner_for(name: str, case: str) -> MAML:
    torch.manual_seed(0)
    model = CASES[case].make().double().train(CASES[case].training)
    named = name in (*HEADS, "ANIL", "BOIL") and case in LAST_BUT_UNUSED
    how = "loop" if CASES[case].runs == "loop" else "vmap"
    head = {} if not named else {"head": "head" if name in HEADS else "head.*"}
    return build(name, model, CASES[case].lr, vectorize=how, **head)


def outputs_of(module: nn.Module, inputs: Any) -> Tensor:
    if isinstance(inputs, dict):
        return module(**inputs)
    return module(*inputs) if isinstance(inputs, tuple) else module(inputs)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", LEARNERS)
def test_runs_or_says_what_is_missing(name, case):
    if (name, case) in CANNOT:
        with pytest.raises(ValueError, match=CANNOT[name, case]):
            learner_for(name, case)
        return
    learner, tasks = learner_for(name, case), tasks_for(case)
    loss = learner(tasks)
    assert loss.isfinite()
    assert loss.requires_grad is ((name, case) not in NOTHING_TO_LEARN)
    if loss.requires_grad:
        gradient = meta_gradient(loss, learner)
        assert gradient.isfinite().all()
        assert gradient.any()
    support, query = unstack(tasks)[0]
    module = learner.adapt(support)
    expected = learner.predict([Task(support, query)])[0, -1]
    own = {p.data_ptr() for p in module.parameters() if p.numel()}
    assert own.isdisjoint(p.data_ptr() for p in learner.parameters())
    del learner
    assert_close(outputs_of(copy.deepcopy(module), query.inputs).detach(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["ProtoNet", "Proto-MAML"])
def test_a_head_that_is_not_called_is_named(name):
    torch.manual_seed(0)
    learner = build(name, CASES["frozen and unused parameters"].make().double())
    with pytest.raises(ValueError, match="The head 'unused' is not called when the model runs"):
        learner(tasks_for("frozen and unused parameters"))


NO_LINEAR, NO_BIAS = nn.Sequential(nn.Conv1d(2, 3, 1), nn.Flatten()), nn.Sequential(nn.Linear(2, 3, bias=False))


@pytest.mark.parametrize(
    ("name", "model", "told"),
    [
        *(
            (name, NO_LINEAR, "Sequential has no linear layer to take for its head")
            for name in ("ANIL", "BOIL", *HEADS)
        ),
        *((name, NO_BIAS, "The head '0' has no bias") for name in ("ProtoNet", "Proto-MAML")),
        ("bias only", NO_BIAS, "No trainable parameter is a bias; there are: 0.weight"),
        ("LoRA", nn.Sequential(nn.LayerNorm(2)), "matches no linear or convolution layer; there are: none"),
        ("FiLM", nn.Sequential(nn.PReLU()), "matches no layer with channels; there are: none"),
        ("CAVIA", nn.Sequential(nn.PReLU()), "matches no layer with channels; there are: none"),
    ],
)
def test_what_a_model_lacks_is_said(name, model, told):
    with pytest.raises(ValueError, match=told):
        build(name, copy.deepcopy(model))


def test_a_model_without_a_context_is_refused():
    with pytest.raises(ValueError, match=r"'\*context' matches no trainable parameter; there are: 0.weight"):
        LEARNERS["CAVIA"].cls(nn.Sequential(nn.Linear(2, 3)), nn.functional.cross_entropy)

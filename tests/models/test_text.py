import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from headstart import MAML, SGD, Batch, Task
from headstart.models.text import GATE_SPEED, TextEncoder


def encoder(**settings) -> TextEncoder:
    torch.manual_seed(0)
    model = TextEncoder(3, buckets=20, size=4, **settings).double()
    torch.nn.init.normal_(model.gate.weight, std=0.05)
    return model


def tokens(*shape: int) -> torch.Tensor:
    rows = torch.randint(1, 20, shape, generator=torch.Generator().manual_seed(1))
    rows[..., 5:] = 0
    return rows


def test_features_are_the_gated_mean():
    model, x = encoder(), torch.tensor([[3, 7, 0, 0]])
    gates = (GATE_SPEED * model.gate.weight[[3, 7]]).exp()
    mean = (gates * model.embedding.weight[[3, 7]]).sum(0) / gates.sum()
    assert_close(model(x)[0], model.head(model.norm(mean)))


def test_neither_padding_nor_order_matters():
    model, x = encoder(), tokens(6, 8)
    assert_close(model(x), model(F.pad(x, (0, 5))))
    assert_close(model(x), model(x.flip(1)))
    assert not torch.allclose(model(x), model(tokens(7, 8)[1:]))


def test_padding_is_never_learned():
    model = encoder()
    model(tokens(6, 8)).square().mean().backward()
    for weight in (model.embedding.weight, model.gate.weight):
        assert weight.grad is not None
        assert weight.grad[0].count_nonzero() == 0
        assert weight.grad.count_nonzero() > 0


def test_a_text_without_features_has_an_answer():
    assert_close(encoder()(torch.zeros(1, 8, dtype=torch.int64)).isfinite().all().item(), True)


def test_dropout_leaves_features_out_in_training_only():
    model, x = encoder(dropout=0.5), tokens(40, 8)
    torch.manual_seed(0)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize("adapted", ["*", ("norm.*", "head.*")])
def test_the_meta_gradient_under_vmap_is_that_of_a_loop_and_of_differences(adapted):
    labels = torch.arange(6) % 3
    tasks = Task(*(Batch(rows, labels.expand(3, -1)) for rows in tokens(2, 3, 6, 8)))
    found = {}
    for how in ("vmap", "loop"):
        learner = MAML(
            encoder(), F.cross_entropy, inner=SGD(lr=0.5), steps=2, adapt_only=adapted, vectorize=how, norm="batch"
        )
        learner(tasks).backward()
        found[how] = {name: p.grad for name, p in learner.model.named_parameters()}
        assert learner.vectorize == how
    assert_close(found["vmap"], found["loop"], rtol=1e-9, atol=1e-12)
    for name, parameter in learner.model.named_parameters():
        index, step = int(found["loop"][name].abs().argmax()), 1e-6
        with torch.no_grad():
            flat = parameter.view(-1)
            flat[index] += step
            above = learner(tasks)
            flat[index] -= 2 * step
            below = learner(tasks)
            flat[index] += step
        assert_close(found["loop"][name].flatten()[index], (above - below) / (2 * step), rtol=1e-5, atol=1e-9)

import math

import pytest
import torch
from torch import Tensor, distributions
from torch.autograd.functional import hessian
from torch.func import functional_call
from torch.testing import assert_close

from headstart.models.policy import Categorical, CategoricalPolicy, Gaussian, GaussianPolicy


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.double)


def gaussian(seed: int, *shape: int) -> Gaussian:
    return Gaussian(normals(*shape, seed=seed), 0.5 * normals(*shape, seed=seed + 1))


def as_torch(ours: Gaussian | Categorical) -> distributions.Distribution:
    if isinstance(ours, Gaussian):
        return distributions.Independent(distributions.Normal(ours.mean, ours.log_std.exp()), 1)
    return distributions.Categorical(logits=ours.logits)


PAIRS = {
    "gaussian": (gaussian(0, 4, 5, 3), gaussian(7, 4, 5, 3)),
    "categorical": (Categorical(3 * normals(4, 5, 6)), Categorical(3 * normals(4, 5, 6, seed=1))),
}


@pytest.mark.parametrize("kind", PAIRS)
def test_log_probabilities_are_those_of_torch_distributions(kind):
    ours, _ = PAIRS[kind]
    actions = as_torch(ours).sample()
    assert_close(ours.log_prob(actions), as_torch(ours).log_prob(actions))
    assert ours.log_prob(actions).shape == (4, 5)


@pytest.mark.parametrize("kind", PAIRS)
def test_divergence_is_that_of_torch_distributions_with_the_expectation_over_self(kind):
    ours, other = PAIRS[kind]
    assert_close(ours.kl(other), distributions.kl_divergence(as_torch(ours), as_torch(other)))
    assert not torch.allclose(ours.kl(other), other.kl(ours), rtol=0.01)
    assert_close(ours.kl(ours), torch.zeros(4, 5, dtype=torch.double), atol=1e-15, rtol=0)


def test_fisher_product_of_a_gaussian_is_the_hessian_of_its_divergence():
    ours, tangent = gaussian(0, 3), gaussian(5, 3)
    matrix = hessian(lambda y: ours.kl(Gaussian(*y.chunk(2))), torch.cat(ours))
    assert_close(torch.cat(ours.fisher(tangent)), matrix @ torch.cat(tangent))


def test_fisher_product_of_a_categorical_is_the_hessian_of_its_divergence():
    ours, tangent = Categorical(2 * normals(5)), Categorical(normals(5, seed=3))
    matrix = hessian(lambda y: ours.kl(Categorical(y)), ours.logits)
    assert_close(ours.fisher(tangent).logits, matrix @ tangent.logits)
    assert_close(ours.fisher(Categorical(torch.ones(5, dtype=torch.double))).logits, torch.zeros(5).double())


@pytest.mark.parametrize("kind", PAIRS)
def test_fisher_products_of_many_states_are_each_states_own(kind):
    ours, tangent = PAIRS[kind]
    together = ours.fisher(tangent)
    for index in [(0, 0), (3, 4), (1, 2)]:
        alone = type(ours)(*(leaf[index] for leaf in ours)).fisher(type(ours)(*(leaf[index] for leaf in tangent)))
        for a, b in zip(alone, together, strict=True):
            assert_close(a, b[index])


def test_gaussian_samples_have_the_mean_and_the_deviation():
    ours = Gaussian(torch.tensor([1.0, -2.0]).expand(40_000, 2), torch.tensor([0.1, 3.0]).log().expand(40_000, 2))
    drawn = ours.sample(generator())
    assert_close(drawn.mean(0), torch.tensor([1.0, -2.0]), atol=0.06, rtol=0)
    assert_close(drawn.std(0), torch.tensor([0.1, 3.0]), atol=0, rtol=0.02)


def test_categorical_samples_have_the_shares_and_keep_their_places():
    shares = torch.tensor([[0.7, 0.2, 0.1], [0.0, 0.5, 0.5]])
    drawn = Categorical(shares.log().expand(20_000, 2, 3)).sample(generator())
    assert drawn.shape == (20_000, 2)
    assert drawn.dtype == torch.int64
    counted = torch.stack([drawn[:, row].bincount(minlength=3) for row in (0, 1)]) / 20_000
    assert_close(counted, shares, atol=0.015, rtol=0)


def test_an_observation_by_itself_gets_a_sample():
    assert GaussianPolicy(3, 2)(torch.zeros(3)).sample(generator()).shape == (2,)


def test_an_observation_by_itself_gets_a_choice():
    assert CategoricalPolicy(3, 4)(torch.zeros(3)).sample(generator()).shape == ()


@pytest.mark.parametrize("kind", PAIRS)
def test_a_seed_fixes_the_sample_whatever_the_global_state(kind):
    ours, _ = PAIRS[kind]
    torch.manual_seed(1)
    first = ours.sample(generator(5))
    torch.manual_seed(2)
    assert torch.equal(first, ours.sample(generator(5)))
    assert not torch.equal(first, ours.sample(generator(6)))


def test_initial_weights_are_glorots_and_biases_zero():
    torch.manual_seed(0)
    policy = GaussianPolicy(300, 200, hidden=(400,), initial_std=0.5)
    for name, size_in, size_out in [("body.0", 300, 400), ("head", 400, 200)]:
        layer = policy.get_submodule(name)
        bound = math.sqrt(6 / (size_in + size_out))
        assert layer.weight.shape == (size_out, size_in)
        assert 0.99 * bound < layer.weight.abs().max() <= bound
        assert_close(layer.weight.var().item(), 2 / (size_in + size_out), rtol=0.02, atol=0)
        assert_close(layer.weight.mean().item(), 0.0, rtol=0, atol=0.01 * bound)
        assert not layer.bias.any()
    assert_close(policy.log_std.detach(), torch.full((200,), math.log(0.5)))


def test_networks_are_the_papers():
    policy = GaussianPolicy(20, 6)
    x = torch.randn(7, 20, generator=generator())
    w = dict(policy.named_parameters())
    hidden = (x @ w["body.0.weight"].T + w["body.0.bias"]).relu()
    hidden = (hidden @ w["body.2.weight"].T + w["body.2.bias"]).relu()
    assert_close(policy(x).mean, hidden @ w["head.weight"].T + w["head.bias"])
    assert hidden.shape == (7, 100)
    assert_close(policy(x).log_std, torch.zeros(7, 6))
    assert sum(p.numel() for p in w.values()) == 20 * 100 + 100 + 100 * 100 + 100 + 100 * 6 + 6 + 6


def test_tanh_is_another_network():
    torch.manual_seed(0)
    policy = CategoricalPolicy(2, 3, hidden=(5,), activation="tanh")
    x, w = torch.randn(4, 2), dict(policy.named_parameters())
    hidden = (x @ w["body.0.weight"].T).tanh()
    assert_close(policy(x).logits, hidden @ w["head.weight"].T)


def test_the_deviation_stops_at_its_floor_and_gets_no_gradient_there():
    policy = GaussianPolicy(2, 3, min_std=0.1)
    with torch.no_grad():
        policy.log_std.copy_(torch.tensor([0.01, 0.2, 5.0]).log())
    distribution = policy(torch.zeros(4, 2))
    assert_close(distribution.log_std.exp(), torch.tensor([0.1, 0.2, 5.0]).expand(4, 3))
    distribution.log_std.sum().backward()
    assert_close(policy.log_std.grad, torch.tensor([0.0, 4.0, 4.0]))


@pytest.mark.parametrize("make", [GaussianPolicy, CategoricalPolicy])
def test_context_is_appended_to_every_observation(make):
    policy = make(2, 3, hidden=(5,), context=4)
    assert policy.body[0].in_features == 6
    assert not policy.context.any()
    x = torch.randn(7, 3, 2, generator=generator())
    with torch.no_grad():
        policy.context.copy_(torch.tensor([1.0, -1.0, 0.5, 2.0]))
    expected = policy.head(policy.body(torch.cat([x, policy.context.expand(7, 3, 4)], -1)))
    assert_close(policy(x)[0], expected)
    policy(x)[0].square().sum().backward()
    assert policy.context.grad.abs().min() > 0
    assert make(2, 3).context is None
    assert "context" not in dict(make(2, 3).named_parameters())


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("make", [GaussianPolicy, CategoricalPolicy])
def test_each_tasks_parameters_under_vmap(make, context):
    policies = [make(3, 2, hidden=(4,), context=context).double() for _ in range(3)]
    for policy in policies:
        for p in policy.parameters():
            torch.nn.init.normal_(p)
    stacked = {
        name: torch.stack([dict(p.named_parameters())[name] for p in policies])
        for name, _ in policies[0].named_parameters()
    }
    x = normals(3, 5, 3)
    together = torch.vmap(lambda params, x: functional_call(policies[0], params, (x,)))(stacked, x)
    for i, policy in enumerate(policies):
        for a, b in zip(together, policy(x[i]), strict=True):
            assert_close(a[i], b)


@pytest.mark.parametrize(
    ("settings", "said"), [({"hidden": ()}, "hidden layer"), ({"activation": "gelu"}, "'relu' or 'tanh', got 'gelu'")]
)
@pytest.mark.parametrize("make", [GaussianPolicy, CategoricalPolicy])
def test_settings_out_of_range(make, settings, said):
    with pytest.raises(ValueError, match=said):
        make(3, 2, **settings)


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("kind", [GaussianPolicy, CategoricalPolicy])
def test_stacked_is_forward_under_vmap(kind, activation, context):
    torch.manual_seed(0)
    policies = [kind(3, 4, hidden=(5, 6), activation=activation, context=context).double() for _ in range(3)]
    for policy in policies:
        for p in policy.parameters():
            p.data += torch.randn_like(p)
    params, _ = torch.func.stack_module_state(policies)
    params = {name: p.detach() for name, p in params.items()}
    observations = torch.randn(3, 7, 3, dtype=torch.double)
    one_by_one = [policy(seen) for policy, seen in zip(policies, observations, strict=True)]
    for given, *expected in zip(policies[0].stacked(params, observations), *one_by_one, strict=True):
        wanted = torch.stack(expected)
        assert_close(given.expand_as(wanted), wanted)

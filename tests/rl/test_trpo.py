import copy
import math

import pytest
import torch
from reference import directional_derivatives, error
from rl import by_hand
from rl.by_hand import as_vector, explored, hessian_of_kl, learner_of, like, meta_gradient
from torch import Tensor
from torch.testing import assert_close
from torch.utils import _pytree as pytree

from headstart import SGD
from headstart.models.policy import Gaussian
from headstart.rl import trpo
from headstart.rl.maml_rl import MAMLRL
from headstart.rl.objectives import Experience
from headstart.rl.trpo import TRPO
from headstart.types import NonFiniteError

CASES = {
    "gaussian": {},
    "categorical": {"discrete": True},
    "two steps": {"steps": 2},
    "ratio": {"objective": "ratio", "steps": 2},
    "deviation fixed": {"adapt_only": ["*", "!log_std"]},
    "context only": {"context": 2, "adapt_only": "context"},
    "in chunks": {"chunk_size": 2},
    "no steps": {"steps": 0},
}
DAMPING = 1e-2
"""Of so few episodes the curvature is singular."""


def case(name: str, rollouts: int = 4) -> tuple[MAMLRL, list[Experience]]:
    learner = learner_of(**CASES[name], rollouts=rollouts)
    episodes = explored(learner)
    assert all((~e.valid).any() for e in episodes)
    return learner, episodes


def dense(update: TRPO, episodes: list[Experience], product: str = "fisher_product") -> Tensor:
    """The matrix whose products are given, column by column."""
    size = as_vector(dict(update.learner.policy.named_parameters())).numel()
    columns = [like(update.learner, row) for row in torch.eye(size, dtype=torch.double)]
    times = getattr(update, product)(episodes)
    return torch.stack([as_vector(times(v)) for v in columns], -1)


def hessian_of_kl_at(learner: MAMLRL, episodes: list[Experience], theta: Tensor) -> Tensor:
    there = copy.deepcopy(learner)
    torch.nn.utils.vector_to_parameters(theta, there.policy.parameters())
    return hessian_of_kl(there, episodes)


def theta_of(learner: MAMLRL) -> Tensor:
    return as_vector(dict(learner.policy.named_parameters())).clone()


@pytest.mark.parametrize("name", CASES)
def test_fisher_products_are_those_of_the_hessian_of_the_divergence_after_adaptation(name):
    learner, episodes = case(name)
    given = dense(TRPO(learner), episodes)
    assert error(given, hessian_of_kl(learner, episodes)) < 1e-6
    assert error(given, given.mT) < 1e-6
    assert torch.linalg.eigvalsh(given).min() > -1e-6
    assert torch.linalg.eigvalsh(given).max() > 1e-2


def test_fisher_products_in_double_precision():
    learner, episodes = case("gaussian")
    assert error(dense(TRPO(learner), episodes), hessian_of_kl(learner, episodes)) < 1e-12


def test_fisher_products_go_through_adaptation():
    """Those of the adapted policies themselves, without the derivative of adapting, are others."""
    learner, episodes = case("gaussian")
    given = dense(TRPO(learner), episodes)
    direct = copy.deepcopy(learner)
    direct.inner = SGD(0.0)
    assert error(dense(TRPO(direct), episodes), given) > 0.1


@pytest.mark.parametrize("name", ["gaussian", "categorical"])
def test_difference_products_are_close_where_the_difference_is_small(name, monkeypatch):
    learner, episodes = case(name)
    exact = dense(TRPO(learner), episodes)
    coarse = dense(TRPO(learner), episodes, "difference_product")
    monkeypatch.setattr(trpo, "DIFFERENCE", 1e-5)
    fine = dense(TRPO(learner), episodes, "difference_product")
    assert error(fine, exact) < 1e-7
    assert error(coarse, exact) > 10 * error(fine, exact)


def test_the_difference_is_over_the_length_of_theta_and_symmetric():
    learner, episodes = case("gaussian")
    start, v = theta_of(learner), torch.linspace(-1, 1, theta_of(learner).numel(), dtype=torch.double)
    step = 1 / start.norm()

    def slope(theta: Tensor) -> Tensor:
        params = {name: p.requires_grad_() for name, p in like(learner, theta.clone()).items()}
        kl = by_hand.after_adaptation(learner, by_hand.kl, episodes, params)
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(kl, list(params.values()))])

    expected = (slope(start + step * v) - slope(start - step * v)) / (2 * step)
    given = TRPO(learner).difference_product(episodes)(like(learner, v))
    assert_close(as_vector(given), expected, rtol=1e-6, atol=1e-8)
    assert_close(theta_of(learner), start, rtol=0, atol=0)


@pytest.mark.parametrize("name", CASES)
def test_the_reference_gradient_is_that_of_finite_differences(name):
    learner, episodes = case(name)
    size = theta_of(learner).numel()
    parameters = list(learner.policy.parameters())

    def surrogate() -> Tensor:
        return by_hand.after_adaptation(learner, by_hand.ratio_loss, episodes)

    slopes = directional_derivatives(surrogate, parameters, torch.eye(size, dtype=torch.double), step=1e-5)
    assert_close(slopes, meta_gradient(learner, episodes), rtol=1e-5, atol=1e-8)


def natural_step(learner: MAMLRL, episodes: list[Experience], max_kl: float, damping: float) -> Tensor:
    """`sqrt(2 delta / x^T A x) x` with `A x = g`, solved densely."""
    g = meta_gradient(learner, episodes)
    matrix = hessian_of_kl(learner, episodes)
    matrix = matrix + damping * torch.eye(len(g), dtype=torch.double)
    x = torch.linalg.solve(matrix, g)
    return math.sqrt(2 * max_kl / (x @ matrix @ x + 1e-8)) * x


@pytest.mark.parametrize(
    ("name", "hessian"),
    [*((name, "exact") for name in CASES if name != "in chunks"), ("gaussian", "finite-differences")],
)
def test_the_update_is_the_natural_step_to_the_edge_of_the_trust_region(name, hessian, monkeypatch):
    monkeypatch.setattr(trpo, "DIFFERENCE", 1e-5)
    learner, episodes = case(name)
    start, step = theta_of(learner), natural_step(learner, episodes, 1e-6, DAMPING)
    metrics = TRPO(learner, max_kl=1e-6, damping=DAMPING, cg_iterations=20, hessian=hessian).improve(episodes)
    assert metrics["accepted"] == 1.0
    assert metrics["backtracks"] <= 1
    share = 0.8 ** metrics["backtracks"]
    assert error(start - theta_of(learner), share * step) < 1e-3
    curvature = hessian_of_kl_at(learner, episodes, start)
    assert metrics["kl"] == pytest.approx(float(share**2 * step @ curvature @ step / 2), rel=0.1)


@pytest.mark.parametrize(("name", "max_kl"), [*((name, 0.02) for name in CASES), ("gaussian", 0.5)])
def test_the_line_search_lowers_the_surrogate_within_the_bound_and_tells_the_truth(name, max_kl):
    learner, episodes = case(name, rollouts=12)
    before = by_hand.after_adaptation(learner, by_hand.ratio_loss, episodes).item()
    metrics = TRPO(learner, max_kl=max_kl, damping=DAMPING).improve(episodes)
    assert metrics["accepted"] == 1.0
    after = by_hand.after_adaptation(learner, by_hand.ratio_loss, episodes).item()
    kl = by_hand.after_adaptation(learner, by_hand.kl, episodes).item()
    assert metrics["meta_loss"] == pytest.approx(before, abs=1e-9)
    assert metrics["loss_after"] == pytest.approx(after, abs=1e-9)
    assert metrics["kl"] == pytest.approx(kl, abs=1e-9)
    assert after < before
    assert 0 < kl <= max_kl


@pytest.mark.parametrize(("max_kl", "at_least"), [(0.01, 5), (10.0, 20)], ids=["by divergence", "by surrogate"])
def test_the_line_search_takes_the_first_length_that_is_good(max_kl, at_least):
    """Of a step ten times too long, whose divergence is far outside: no shorter than need be."""
    learner, episodes = case("gaussian")
    start = theta_of(learner)
    step = 10 * natural_step(learner, episodes, max_kl, DAMPING)
    parameters, good = list(learner.policy.parameters()), []
    before = by_hand.after_adaptation(learner, by_hand.ratio_loss, episodes).item()
    for tried in range(60):
        torch.nn.utils.vector_to_parameters(start - 0.8**tried * step, parameters)
        loss = by_hand.after_adaptation(learner, by_hand.ratio_loss, episodes).item()
        good.append(loss < before and by_hand.after_adaptation(learner, by_hand.kl, episodes).item() <= max_kl)
    torch.nn.utils.vector_to_parameters(start.clone(), parameters)  # which are views of it afterwards
    first = good.index(True)
    assert first >= at_least

    class TooFar(TRPO):
        def fisher_product(self, episodes):
            times = super().fisher_product(episodes)
            return lambda v: {name: p / 100 for name, p in times(v).items()}

    update = TooFar(learner, max_kl=max_kl, damping=DAMPING / 100, cg_iterations=25, backtracks=60)
    assert update.improve(episodes)["backtracks"] == first
    assert error(start - theta_of(learner), 0.8**first * step) < 1e-2


@pytest.mark.parametrize("backtracks", [1, 15])
def test_where_no_length_is_good_the_parameters_stay(backtracks):
    """The policy that acted is told to be another, so that no step is within the bound."""
    learner, episodes = case("gaussian")
    *support, query = episodes
    far = query._replace(behaviour=Gaussian(query.behaviour.mean + 3, query.behaviour.log_std))
    start = copy.deepcopy(learner.state_dict())
    metrics = TRPO(learner, backtracks=backtracks).improve([*support, far])
    assert metrics["accepted"] == 0.0
    assert metrics["backtracks"] == backtracks
    assert metrics["loss_after"] == metrics["meta_loss"]
    for name, p in learner.state_dict().items():
        assert torch.equal(p, start[name])


def test_no_advantage_no_step():
    learner, episodes = case("gaussian")
    none = [e._replace(advantages=torch.zeros_like(e.advantages)) for e in episodes]
    start = theta_of(learner)
    assert TRPO(learner).improve(none)["accepted"] == 0.0
    assert torch.equal(theta_of(learner), start)


@pytest.mark.parametrize(
    ("fraction", "kept"), [(0.5, [0, 2]), (0.25, [0]), (0.6, [0, 1, 3]), (1e-9, [0]), (1.0, [0, 1, 2, 3])]
)
def test_the_curvature_is_taken_at_a_share_of_the_time_steps(fraction, kept):
    learner, episodes = case("categorical")
    given = []

    class Noting(TRPO):
        def fisher_product(self, episodes):
            given.extend(episodes)
            return super().fisher_product(episodes)

    metrics = Noting(learner, fisher_fraction=fraction, max_kl=0.01, damping=DAMPING).improve(episodes)
    assert len(given) == 2
    assert torch.equal(given[1].valid, episodes[1].valid[:, :, kept])
    assert torch.equal(given[1].observations, episodes[1].observations[:, :, kept])
    assert torch.equal(given[1].behaviour.logits, episodes[1].behaviour.logits[:, :, kept])
    # gradient, bound and surrogate are of all steps
    assert metrics["accepted"] == 1.0
    assert metrics["kl"] == pytest.approx(by_hand.after_adaptation(learner, by_hand.kl, episodes).item(), abs=1e-9)
    assert 0 < metrics["kl"] <= 0.01


@pytest.mark.parametrize(("fraction", "length", "kept"), [(0.07, 100, 7), (0.28, 25, 7), (0.1, 200, 20), (0.3, 10, 3)])
def test_a_share_that_is_a_whole_number_of_steps(fraction, length, kept):
    learner, episodes = case("gaussian")
    longer = [
        pytree.tree_map(lambda leaf: leaf.repeat_interleave(length // 4 + 1, 2)[:, :, :length], e) for e in episodes
    ]
    thin = TRPO(learner, fisher_fraction=fraction).thinned(longer)
    assert {e.valid.shape[2] for e in thin} == {kept}


def trained(update: TRPO, updates: int, tasks: torch.Generator) -> list[dict[str, float]]:
    return [update.update(update.learner.problem.sample(3, tasks)) for _ in range(updates)]


@pytest.mark.parametrize("name", ["gaussian", "categorical"])
def test_resumed_is_uninterrupted(name):
    def fresh() -> TRPO:
        return TRPO(learner_of(**CASES[name]), seed=7, max_kl=0.05, cg_iterations=3)

    tasks = torch.Generator().manual_seed(0)
    whole = fresh()
    trained(whole, 2, tasks)
    state, stream = copy.deepcopy(whole.state_dict()), tasks.get_state()
    expected = trained(whole, 2, tasks)

    resumed = fresh()
    trained(resumed, 1, torch.Generator().manual_seed(5))  # it has been elsewhere meanwhile
    resumed.load_state_dict(state)
    assert trained(resumed, 2, torch.Generator().set_state(stream)) == expected
    assert torch.equal(theta_of(resumed.learner), theta_of(whole.learner))


def test_a_seed_fixes_an_update_and_another_gives_another():
    tasks = torch.tensor([[0.5], [-0.5]], dtype=torch.double)
    first, same, other = (TRPO(learner_of(), seed=seed).update(tasks) for seed in (1, 1, 2))
    assert first == same
    assert first != other
    assert {"meta_loss", "kl", "return_before", "return_after", "accepted"} <= set(first)
    assert all(type(value) is float for value in first.values())


@pytest.mark.parametrize("where", [0, 1], ids=["inner", "outer"])
def test_numbers_that_are_not_finite_stop_the_update_and_name_the_task(where):
    learner, episodes = case("gaussian")
    episodes = list(episodes)
    spoilt = episodes[where].advantages.clone()
    spoilt[1, 0, 0] = float("inf")
    episodes[where] = episodes[where]._replace(advantages=spoilt)
    start = theta_of(learner)
    with pytest.raises(NonFiniteError, match="task 1"):
        TRPO(learner).improve(episodes)
    assert torch.equal(theta_of(learner), start)


def test_parameters_that_take_no_gradient_stay_and_do_not_count():
    learner, episodes = case("gaussian")
    learner.policy.log_std.requires_grad_(False)
    learner = MAMLRL(learner.policy, learner.problem, inner=SGD(0.3), rollouts=4)
    episodes = explored(learner)
    fixed, moving = learner.policy.log_std.clone(), learner.policy.head.bias.clone()
    for hessian in ("exact", "finite-differences"):
        assert TRPO(learner, damping=DAMPING, hessian=hessian).improve(episodes)["accepted"] == 1.0
    assert torch.equal(learner.policy.log_std, fixed)
    assert not torch.equal(learner.policy.head.bias, moving)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"hessian": "gauss-newton"}, "hessian must be one of exact, finite-differences, got 'gauss-newton'"),
        ({"max_kl": 0.0}, "max_kl must be positive.*got 0.0"),
        ({"backtrack_ratio": 1.0}, r"backtrack_ratio in \(0, 1\).* 1.0"),
        ({"fisher_fraction": 0.0}, r"fisher_fraction in \(0, 1\].* 0.0"),
        ({"fisher_fraction": 1.5}, r"fisher_fraction in \(0, 1\].* 1.5"),
        ({"damping": -1e-3}, "damping 0 or more.* -0.001"),
        ({"cg_iterations": 0}, "cg_iterations and backtracks must be at least 1, got 0 and 15"),
        ({"backtracks": 0}, "cg_iterations and backtracks must be at least 1, got 10 and 0"),
    ],
)
def test_settings_out_of_range(settings, said):
    with pytest.raises(ValueError, match=said):
        TRPO(learner_of(), **settings)

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from headstart.export.tidy import changes_in_place, tidied


def recorded(fn, *args):
    return make_fx(fn)(*args)


def targets(graph):
    return [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]


def test_what_is_computed_twice_is_computed_once():
    x = torch.randn(3, generator=torch.Generator().manual_seed(0))
    graph = recorded(lambda x: (x.sin() * 2).cos() + (x.sin() * 2).cos() + x.clone().sin(), x)
    before = graph(x)
    tidied(graph)
    assert targets(graph).count("aten.sin.default") == 1
    assert targets(graph).count("aten.cos.default") == 1
    assert "aten.clone.default" not in targets(graph)
    torch.testing.assert_close(graph(x), before)


def test_equal_numbers_of_other_types_are_not_the_same():
    x = torch.tensor([1, 2])
    graph = tidied(recorded(lambda x: ((x * 1), (x * 1.0)), x))
    assert [output.dtype for output in graph(x)] == [torch.int64, torch.float32]


def test_a_copy_that_lays_out_anew_stays():
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    graph = tidied(recorded(lambda x: x.t().contiguous().view(6), x))
    torch.testing.assert_close(graph(x), x.t().reshape(6))


def test_nothing_is_left_that_nobody_uses():
    def wasteful(x):
        x.cos()
        return x.sin()

    assert targets(tidied(recorded(wasteful, torch.ones(1)))) == ["aten.sin.default"]


def test_writing_in_place_is_found():
    assert changes_in_place(recorded(lambda x: (x * 2).add_(1), torch.ones(1)))
    assert not changes_in_place(recorded(lambda x: x * 2 + 1, torch.ones(1)))

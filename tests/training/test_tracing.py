import pytest
import torch
import torch._inductor
from torch import Tensor
from torch.testing import assert_close

from headstart.training import tracing
from headstart.training.tracing import CannotCompileError, DrawsRandomNumbersError, Flat, Traced

COMPILER_WARNS = pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")


def inner_step(tree: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    """The second derivative of something, by way of two first ones."""

    def loss(w: Tensor) -> Tensor:
        return (w * x).sin().sum()

    w = tree["w"].detach().requires_grad_()
    stepped = w - torch.func.grad(loss)(w)
    return {"stepped": stepped.detach(), "gradient": torch.autograd.grad(loss(stepped), w)[0]}


def expected(w: Tensor, x: Tensor) -> dict[str, Tensor]:
    stepped = w - x * (w * x).cos()
    return {"stepped": stepped, "gradient": x * (stepped * x).cos() * (1 + x * x * (w * x).sin())}


W, X = torch.linspace(-1, 1, 6).double().reshape(2, 3), torch.linspace(0.5, 2, 6).double().reshape(2, 3)


@pytest.mark.usefixtures("recorded")
class TestRecording:
    def test_takes_derivatives(self):
        traced = Traced(inner_step)
        for scale in (1.0, 2.0):
            assert_close(traced({"w": scale * W}, X), expected(scale * W, X))
        assert len(traced.compiled) == 1

    def test_records_for_each_shape_type_structure_and_static(self, recorded):
        static = [1.0]
        traced = Traced(lambda *trees: [2 * t for t in torch.utils._pytree.tree_leaves(trees)], lambda: static)
        for count, arguments in enumerate(
            [(W,), (W[:1],), (W.float(),), (W, W), ({"w": W, "v": W},), ({"w": W, "u": W},)], start=1
        ):
            for _ in range(2):
                assert_close(traced(*arguments)[0], 2 * torch.utils._pytree.tree_leaves(arguments)[0])
            assert len(recorded) == count
        static[0] = 3.0
        traced(W)
        assert len(recorded) == 7

    def test_static_objects_are_told_apart_though_their_place_in_memory_is_used_again(self):
        class Setting:
            def __init__(self, value: float):
                self.value = value

        held = [Setting(0.0)]
        traced = Traced(lambda x: x * held[0].value, lambda: (held[0],))
        for value in range(20):
            held[0] = Setting(float(value))
            assert_close(traced(W), W * value)

    @pytest.mark.parametrize(
        "make",
        [
            lambda: torch.arange(3.0).expand(4, 3),
            lambda: torch.arange(24.0).reshape(4, 6)[:, :3],
            lambda: torch.arange(12.0).reshape(3, 4).T,
            lambda: torch.arange(48.0).reshape(4, 2, 6)[:, 1, ::2],
        ],
        ids=["expanded", "narrowed", "transposed", "strided"],
    )
    def test_takes_views(self, make):
        """Samplers and users give parts of larger tensors, and one tensor several times."""
        traced = Traced(lambda x: x.reshape(-1) * 2 + x.flatten().sum())
        for _ in range(2):
            assert_close(traced(make()), make().reshape(-1) * 2 + make().sum())

    def test_changes_arguments_as_often_as_it_is_called(self):
        def step(count: Tensor, x: Tensor) -> Tensor:
            count.copy_(count + 1)
            return x + count

        traced, count = Traced(step), torch.zeros(())
        for calls in (1.0, 2.0, 3.0):
            assert_close(traced(count, W), W + calls)
            assert count == calls

    def test_a_condition_on_a_shape_may_be_taken_but_not_one_on_a_value(self):
        assert_close(Traced(lambda x: x if len(x) > 1 else 2 * x)(W[:1]), 2 * W[:1])
        with pytest.raises(CannotCompileError, match=r"value out of a tracing tensor|data-dependent"):
            Traced(lambda x: x if x.sum() > 0 else 2 * x)(W)
        with pytest.raises(CannotCompileError):
            Traced(lambda x: x * x.max().item())(W)

    def test_errors_of_the_function_are_passed_on_with_their_first_line(self):
        def wrong(x: Tensor) -> Tensor:
            raise ValueError("no such thing\nas this")

        with pytest.raises(CannotCompileError, match=r"^ValueError: no such thing$") as raised:
            Traced(wrong)(W)
        assert isinstance(raised.value.__cause__, ValueError)

    def test_memory_errors_are_none_of_the_compilers(self):
        def large(x: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("too large")

        with pytest.raises(torch.OutOfMemoryError):
            Traced(large)(W)


@pytest.mark.usefixtures("recorded")
class TestRandomNumbers:
    DRAWS = {  # noqa: RUF012
        "dropout": torch.nn.functional.dropout,
        "rand_like": lambda x: x + torch.rand_like(x),
        "bernoulli": lambda x: x * torch.bernoulli(torch.full_like(x, 0.5)),
        "normal": lambda x: x + torch.randn(x.shape),
        "vmap": lambda x: torch.vmap(torch.nn.functional.dropout, randomness="different")(x),
    }

    @pytest.mark.parametrize("fn", DRAWS.values(), ids=DRAWS)
    def test_are_refused_where_a_call_must_give_the_same_again(self, fn):
        with pytest.raises(DrawsRandomNumbersError, match="draws random numbers: aten"):
            Traced(fn, repeatable=True)(W)

    @pytest.mark.parametrize("fn", DRAWS.values(), ids=DRAWS)
    def test_are_drawn_at_every_call_and_not_by_recording(self, fn):
        traced = Traced(fn)
        torch.manual_seed(0)
        first = [traced(torch.ones(50)), traced(torch.ones(50))]  # the first of them recorded
        torch.manual_seed(0)
        again = [traced(torch.ones(50)), traced(torch.ones(50))]
        assert_close(again, first, rtol=0, atol=0)
        assert not torch.equal(*first)

    def test_masks_drawn_for_nothing_do_not_count(self):
        def fn(x: Tensor) -> Tensor:
            return torch.nn.functional.dropout(x, training=False) + 0 * torch.ones_like(x)

        assert_close(Traced(fn, repeatable=True)(W), W)


def test_convolutions_keep_their_layout_on_a_cpu(monkeypatch):
    told = []
    monkeypatch.setattr(torch._inductor, "compile", lambda graph, examples, options: (told.append(options), graph)[1])
    Traced(lambda x: 2 * x)(W)
    assert [options["layout_optimization"] for options in told] == [False]


class TestDamagedCache:
    """A process that is killed while it compiles leaves a file that cannot be loaded."""

    def broken(self, monkeypatch, cache, path, times: int) -> list[int]:
        calls = []
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(cache))

        def compile_or_fail(graph, examples, options):
            calls.append(1)
            if len(calls) <= times:
                path.write_text("cut short")
                try:
                    raise ImportError("file too short", path=str(path))
                except ImportError as error:
                    raise RuntimeError("the compiler failed") from error
            return graph

        monkeypatch.setattr(torch._inductor, "compile", compile_or_fail)
        return calls

    def test_the_file_is_removed_and_made_again(self, monkeypatch, tmp_path):
        calls = self.broken(monkeypatch, tmp_path, tmp_path / "kernel.so", times=2)
        assert_close(Traced(lambda x: 2 * x)(W), 2 * W)
        assert len(calls) == 3
        assert not (tmp_path / "kernel.so").exists()

    def test_not_without_end(self, monkeypatch, tmp_path):
        self.broken(monkeypatch, tmp_path, tmp_path / "kernel.so", times=10**6)
        with pytest.raises(CannotCompileError, match="damaged"):
            Traced(lambda x: 2 * x)(W)

    def test_no_other_file_is_removed(self, monkeypatch, tmp_path):
        calls = self.broken(monkeypatch, tmp_path / "cache", tmp_path / "other.so", times=1)
        with pytest.raises(CannotCompileError, match="RuntimeError: the compiler failed"):
            Traced(lambda x: 2 * x)(W)
        assert len(calls) == 1
        assert (tmp_path / "other.so").exists()


@COMPILER_WARNS
def test_a_graph_is_kept_on_disk(monkeypatch, tmp_path):
    from torch._dynamo.utils import counters  # what else tells whether something was compiled

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    counted = counters["aot_autograd"]
    found, hits = [], []
    for _ in range(2):
        before = counted["autograd_cache_hit"]
        found.append(Traced(inner_step)({"w": W}, X))
        hits.append(counted["autograd_cache_hit"] - before)
    assert hits == [0, 1]
    assert_close(found, 2 * [expected(W, X)])
    for constant in (W, 3 * W):  # another constant is another graph, or another input of the same
        assert_close(Traced(lambda x, constant=constant: x * constant)(X), X * constant)


@COMPILER_WARNS
def test_compiled_it_does_the_same():
    """Derivatives, changes in place, random numbers: with the compiler in it."""

    def fn(count: Tensor, w: Tensor, x: Tensor) -> dict[str, Tensor]:
        count.copy_(count + 1)
        ones = torch.vmap(torch.nn.functional.dropout, randomness="different")(torch.ones_like(w).expand(50, 2, 3))
        return inner_step({"w": w}, x) | {"row": x.reshape(-1) + count, "mask": ones}

    traced, count = Traced(fn), torch.zeros(())
    masks = []
    for calls in (1, 2):
        given = traced(count, W, X)
        masks.append(given.pop("mask"))
        assert_close(given, expected(W, X) | {"row": X.reshape(-1) + calls})
        assert count == calls
        assert set(masks[-1].unique().tolist()) == {0.0, 2.0}
        assert masks[-1].mean().sub(1).abs() < 4 / 300**0.5
    assert not torch.equal(*masks)
    assert not torch.equal(masks[0][0], masks[0][1])


@COMPILER_WARNS
@pytest.mark.parametrize("make", [lambda: torch.cat([X, X], 1)[:, :3], lambda: X[:1].expand(2, 3)], ids=["part", "row"])
def test_compiled_it_takes_views(make):
    traced = Traced(lambda x: x.sin() + 1)
    for _ in range(2):
        assert_close(traced(make()), make().sin() + 1)


@COMPILER_WARNS
def test_compiled_it_takes_views_of_what_the_compiler_lays_out_in_another_way():
    """FiLM made from a context, in bfloat16: PyTorch's rules foresee other strides than its kernels give."""

    def modulated(images: Tensor, weight: Tensor, gamma: Tensor) -> Tensor:
        channels_last = (images @ weight).permute(0, 1, 4, 2, 3).bfloat16()
        gamma = gamma.chunk(2, -1)[0][:, None, :, None, None].bfloat16()
        out = gamma.expand_as(channels_last) * channels_last
        return out.permute(0, 1, 3, 4, 2).reshape(4, -1, 8)

    args = torch.rand(4, 5, 4, 4, 8), torch.rand(8, 8), torch.rand(4, 16)
    assert_close(Traced(modulated)(*args), modulated(*args), rtol=0.02, atol=0.02)


@COMPILER_WARNS
def test_compiled_it_rounds_to_bfloat16_where_eager_mode_does():
    """Each operation rounds: fused without it, what was lost next to 256 would still be there."""
    x = torch.linspace(-3, 3, 100).bfloat16()

    def lossy(x: Tensor) -> Tensor:
        return (x * 1.1 + 256) - 256

    assert_close(Traced(lossy)(x), lossy(x), rtol=0, atol=0)


def _written_through_a_view(x: Tensor) -> Tensor:
    y = x + 1
    y.view(-1)[0] = 7.0
    return y.view(3, 2)


def _written_and_shown(x: Tensor) -> Tensor:
    y = x + 1
    seen = y.view(3, 2)
    y.mul_(2)
    return seen


def _written_as_out(x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    seen = y.view(3, 2)
    torch.add(x, 1, out=y)
    return seen


def _written_in_parts(x: Tensor) -> Tensor:
    y = x + 1
    seen = y.view(3, 2)
    for part in y.unbind(0):
        part.mul_(2)
    return seen


def _written_in_a_chunk(x: Tensor) -> Tensor:
    y = x + 1
    seen = y.view(3, 2)
    y.chunk(2, 1)[1].zero_()
    return seen


WRITERS = [_written_through_a_view, _written_and_shown, _written_as_out, _written_in_parts, _written_in_a_chunk]


def _kinds_of_view(fn) -> set[str]:
    graph = torch.fx.experimental.proxy_tensor.make_fx(fn)(X)
    tracing._free_layouts(graph)
    return {str(node.target) for node in graph.graph.nodes} & {"aten.view.default", "aten.reshape.default"}


@pytest.mark.parametrize("fn", WRITERS)
def test_views_stay_views_where_what_they_show_is_written_to(fn):
    assert _kinds_of_view(fn) == {"aten.view.default"}


@COMPILER_WARNS
@pytest.mark.parametrize("fn", WRITERS)
def test_compiled_views_show_what_is_written(fn):
    assert_close(Traced(fn)(X), fn(X))


def _counted(x: Tensor) -> Tensor:
    count = torch.zeros(())
    count.add_(1)  # as batch norm does, whoever reads it
    return (x + 1).view(3, 2)


def _written_before(x: Tensor) -> Tensor:
    return (x + 1).relu_().view(3, 2)


@pytest.mark.parametrize("fn", [_counted, _written_before, lambda x: (x + 1).view(3, 2)])
def test_other_views_become_reshapes(fn):
    assert _kinds_of_view(fn) == {"aten.reshape.default"}


def test_names_of_random_operations():
    graph = torch.fx.experimental.proxy_tensor.make_fx(lambda x: x + torch.rand_like(x))(W)
    assert tracing.random_operations(graph) == ["aten.rand_like.default"]


@pytest.mark.usefixtures("recorded")
def test_what_is_written_several_times():
    """To a part of what is returned, and to an argument, whose later write is recorded on the earlier one's result."""

    def chained(x: torch.Tensor, counter: torch.Tensor) -> list[torch.Tensor]:
        out = torch.zeros_like(x)
        out[:, 0].add_(x[:, 0]).mul_(2)
        counter.add_(1).mul_(3)
        return [out]

    counter = torch.zeros(2)
    given = Traced(chained)(X, Flat(counter))
    assert_close(given[0][:, 0], 2 * X[:, 0])
    assert_close(counter, torch.full((2,), 3.0))

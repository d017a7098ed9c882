import os
from collections.abc import Iterator

import pytest
import torch._inductor
import torch._inductor.config as compiler


@pytest.fixture(scope="session", autouse=True)
def _compiler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiled code goes into a folder of this session, unless the environment names one: never into the user's."""
    with pytest.MonkeyPatch.context() as patch:
        if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
            patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        patch.setattr(compiler, "compile_threads", 1)  # a pool of processes takes longer to start than it saves
        yield


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The compiler left out: what was recorded is run operation by operation. Gives the length of each recording.

    Most of what can go wrong goes wrong in the recording, and this takes a hundredth of the time.
    """
    lengths = []

    def run_as_recorded(graph, examples, options):
        graph(*(example.clone() for example in examples))  # as the compiler, refuse what cannot run
        lengths.append(len(graph.graph.nodes))
        return graph

    monkeypatch.setattr(torch._inductor, "compile", run_as_recorded)
    return lengths

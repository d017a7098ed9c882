import ctypes
import subprocess
import sys
from types import SimpleNamespace

import pytest

from headstart import allocator


def test_here_it_answers_and_the_process_goes_on():
    code = (
        "import torch; from headstart.allocator import keep_memory; kept = keep_memory();"
        "assert keep_memory() is kept; print(kept, torch.ones(2**22).sum().item())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    kept, total = run.stdout.split()
    assert kept in ("True", "False")
    assert float(total) == 2**22


@pytest.mark.skipif(allocator._glibc("malloc_trim") is None, reason="needs glibc")
def test_what_is_freed_is_given_back_when_asked():
    code = """
import ctypes, re
from pathlib import Path
from headstart.allocator import give_back, keep_memory

def held_mib():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1)) >> 10

keep_memory()
before = held_mib()
large = ctypes.create_string_buffer(2**28)
last = ctypes.create_string_buffer(2**10)  # above it, so that the top of the heap is not free
del large
kept = held_mib() - before
give_back()
print(kept, held_mib() - before)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    kept, left = map(int, run.stdout.split())
    assert kept > 200 > 50 > left


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_systems_have_no_glibc(platform, monkeypatch):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("looked for a C library"))
    assert allocator.keep_memory() is False


def test_another_c_library_has_no_such_function(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    assert allocator.keep_memory() is False


@pytest.mark.parametrize("refused", [None, -4, -2, -1])
def test_all_three_are_asked_for(refused, monkeypatch):
    asked = {}

    def mallopt(name: int, value: int) -> int:
        asked[name] = value
        return int(name != refused)

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    assert allocator.keep_memory() is (refused is None)
    assert asked[-4] == 0  # no separate mappings
    assert asked[-1] > 2**30
    assert asked[-2] == 256 * 2**20
    assert all(0 <= value < 2**31 for value in asked.values())  # C's int

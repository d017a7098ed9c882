import pytest
from training.conftest import recorded

from headstart import worthwhile

__all__ = ["recorded"]


@pytest.fixture(autouse=True)
def _as_for_large_images(monkeypatch):
    """Norms and pooling with the derivatives that large images have; other tests have those of small ones."""
    monkeypatch.setattr(worthwhile, "LARGE", 0)

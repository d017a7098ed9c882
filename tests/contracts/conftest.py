from training.conftest import recorded

__all__ = ["recorded"]

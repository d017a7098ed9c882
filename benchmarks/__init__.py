"""What a meta-iteration costs, here and in other libraries: see `speed.py`, `scaling.py` and `report.py`."""

"""Imported where processes are forked to be killed: whatever a forecast imports is imported once, here."""

import tempfile

import torch
from faults import forecast

torch.set_num_threads(1)
with tempfile.TemporaryDirectory() as folder:
    forecast(f"{folder}/fc.zarr", lead="1D", members=1, time=None)

"""The workload in a bare loop: no messages, no checks, nothing kept; one model, whose numbers are overwritten."""

from __future__ import annotations

import random
import time

import torch

from benchmarks.fleet_workload import Played, Workload, adapter_of, plain_model, token_rows, train_plainly

__all__ = ["play"]


def play(workload: Workload) -> Played:
    """Train the fleet."""
    model = plain_model(workload)
    rows = [token_rows(workload, device) for device in range(workload.devices)]
    parameters = [parameter.data for parameter in model.parameters() if parameter.requires_grad]
    shared = [values.clone() for values in parameters]
    seconds, draw = [], random.Random(0)
    for _ in range(workload.rounds):
        began = time.perf_counter()
        total = [torch.zeros_like(values) for values in shared]
        for device in draw.sample(range(workload.devices), workload.cohort):
            for values, start in zip(parameters, shared, strict=True):
                values.copy_(start)
            train_plainly(model, rows[device], workload)
            for sums, values in zip(total, parameters, strict=True):
                sums.add_(values)
        shared = [sums / workload.cohort for sums in total]
        seconds.append(time.perf_counter() - began)
    for values, mean in zip(parameters, shared, strict=True):
        values.copy_(mean)
    return seconds, adapter_of(model)

"""The workload in Apple's pfl-research (Granqvist et al., arXiv 2404.06430), which this project does not depend on.

    pip install --no-deps --target FOLDER pfl==0.6.0 prv-accountant==0.2.0
    PYTHONPATH=FOLDER python -m benchmarks fleet

So it runs on the same libraries as the other sides, whatever its own pins ask for.
"""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import time
import types
from itertools import pairwise
from typing import Any

import torch

from benchmarks.fleet_workload import Played, Workload, adapter_of, plain_model, token_rows

__all__ = ["play"]


def play(workload: Workload) -> Played:
    """Train the fleet."""
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.sampling import get_user_sampler
    from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
    from pfl.metrics import Metrics, Weighted
    from pfl.model.pytorch import PyTorchModel

    ended: list[float] = []

    class Clock(TrainingProcessCallback):  # type: ignore[misc]
        def after_central_iteration(
            self, aggregate_metrics: Any, model: Any, *, central_iteration: int
        ) -> tuple[bool, Any]:
            ended.append(time.perf_counter())
            return False, Metrics()

    module = plain_model(workload)
    module.loss = types.MethodType(_loss, module)
    module.metrics = types.MethodType(lambda *_, **__: {"loss": Weighted(0.0, 1)}, module)
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    model = PyTorchModel(
        model=module,
        local_optimizer_create=torch.optim.SGD,
        central_optimizer=torch.optim.SGD(parameters, lr=1.0),
    )
    rows = [torch.tensor(token_rows(workload, device)) for device in range(workload.devices)]
    data = FederatedDataset(
        lambda device: Dataset(raw_data=[rows[device], rows[device]], user_id=str(device)),
        get_user_sampler("random", list(range(workload.devices))),
    )
    began = time.perf_counter()
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=workload.rounds,
            evaluation_frequency=workload.rounds + 1,
            train_cohort_size=workload.cohort,
            val_cohort_size=0,
        ),
        SimulatedBackend(training_data=data, val_data=data),
        model,
        NNTrainHyperParams(
            local_learning_rate=workload.learning_rate, local_num_epochs=1, local_batch_size=workload.batch
        ),
        NNEvalHyperParams(local_batch_size=workload.batch),
        callbacks=[Clock()],
    )
    return [end - start for start, end in pairwise([began, *ended])], adapter_of(module)


def _loss(model: Any, ids: Any, labels: Any, eval: bool = False) -> Any:
    return model(input_ids=ids, labels=labels).loss

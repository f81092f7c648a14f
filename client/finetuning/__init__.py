"""Fine-tuning of one adapter slot: packed, memory-bounded, resumable to the bit.

`finetune` is the whole interface; each file beside it holds one idea of how.
"""

from client.finetuning.config import FineTuneConfig, FineTuneReport, Progress
from client.finetuning.loop import finetune, mean_gradient
from client.finetuning.trainable import Anchor, Target

__all__ = ["Anchor", "FineTuneConfig", "FineTuneReport", "Progress", "Target", "finetune", "mean_gradient"]

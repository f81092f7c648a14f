"""What runs on a device: the frozen model, selection, the private buffer, annotation, synthesis, fine-tuning."""

import logging

# peft imports bitsandbytes wherever it is installed; it logs that it misses an optional library, and a line for every
# product that is not in float16.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

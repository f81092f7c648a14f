"""What runs on a device: the frozen model, selection, the private buffer, annotation, synthesis, fine-tuning."""

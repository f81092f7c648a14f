"""Ways of sharing adapters, one file each; pure functions over named tensors."""

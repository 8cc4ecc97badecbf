"""The LoRA benchmark: S-LoRA's experiments and ablations on this machine, through the shipped scheduler and kernels."""

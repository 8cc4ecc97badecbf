"""Reading PEFT adapters strictly, and keeping them on the host."""

"""What runs in the next step: planning, admission, preemption. Decisions only, no torch."""

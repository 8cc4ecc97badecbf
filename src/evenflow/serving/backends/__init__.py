"""From a plan to kernel calls: plan() once per step, run() per layer."""

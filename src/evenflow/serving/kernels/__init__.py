"""Pure functions of tensors; they import nothing else of EvenFlow."""

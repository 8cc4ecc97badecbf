"""The other tensor-parallel ranks: their processes, the plans and adapters that they are sent."""

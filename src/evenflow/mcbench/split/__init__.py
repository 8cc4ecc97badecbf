"""An unmodified model divided over ranks, with compressed exchanges where it was cut."""

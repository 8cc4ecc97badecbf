"""How fair and how quick a finished run was. Reads logs of runs only."""

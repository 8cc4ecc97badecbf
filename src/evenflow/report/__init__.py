"""Tables, plots and one self-contained HTML page, used by demo, replay, bench and mcbench. Knows nothing of what it shows."""

"""Tables, plots and one self-contained HTML page: what demo, replay, bench and mcbench all use."""

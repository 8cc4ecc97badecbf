"""Several engines behind one front: their directory, the fleet that a front speaks to, and their deployment on Ray."""

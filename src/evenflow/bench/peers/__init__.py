"""Other engines to compare with, one file each; each runs in a process of its own, in its own best form."""

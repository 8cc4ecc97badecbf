"""`python -m evenflow`: the command line, where its script is not on the path."""

from evenflow.cli.main import script

if __name__ == "__main__":
    script()

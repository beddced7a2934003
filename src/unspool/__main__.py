"""`python -m unspool`: the command line."""

from unspool.cli.main import run

if __name__ == "__main__":
    run()

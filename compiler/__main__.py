"""Run ``python -m npuc``."""

from npuc.cli import program

if __name__ == "__main__":
    program()

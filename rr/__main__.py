"""`python -m rr` is the command line of rr.cli."""

from rr.cli import main

if __name__ == "__main__":
    main()

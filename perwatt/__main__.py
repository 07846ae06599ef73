"""`python -m perwatt` is `perwatt`."""

from perwatt.cli import main

if __name__ == "__main__":
    main()

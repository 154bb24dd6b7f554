"""`python -m defend`."""

from defend.cli import main

if __name__ == "__main__":
    main()

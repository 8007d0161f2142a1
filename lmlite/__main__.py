"""`python -m lmlite`: the same as the `lmlite` command."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())

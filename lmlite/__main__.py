"""`python -m lmlite`: the same as the `lmlite` command."""

import gc
import sys

COLLECT = 50_000
"""Objects more than at the last collection until the next. Python's own 700 make a large request cost dozens of collections
while it is read, the longest of 80 ms, and a start fifty, of what stays for good; little here is ever part of a circle."""

gc.set_threshold(COLLECT, 10, 10)  # before all that is imported

from .cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())

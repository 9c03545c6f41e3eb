"""`python -m sta`: the same as the `sta` command."""

import sys

from sta.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

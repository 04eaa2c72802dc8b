"""`python -m report`: see `report.command`."""

import sys

from report.command import main

if __name__ == "__main__":
    sys.exit(main())

"""``python -m cs_models`` is the same as the command ``cs-models``."""

import sys

from cs_models.cli.importing import importing

with importing():
    from cs_models.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

"""Compare reconstruction methods: ``python eval.py --help``. Installed, the same as ``cs-models eval``."""

import sys

from cs_models.cli.importing import importing

with importing():
    from cs_models.cli.evaluate import main

if __name__ == "__main__":
    sys.exit(main())

"""Train a reconstruction network: ``python train.py --help``. Installed, the same as ``cs-models train``."""

import sys

from cs_models.cli.importing import importing

with importing():
    from cs_models.cli.train import main

if __name__ == "__main__":
    sys.exit(main())

"""``python -m cs_models.import_official``: a path that scripts rely on; see `cs_models.zoo.import_official`."""

import sys

from cs_models.zoo.import_official import main

if __name__ == "__main__":
    sys.exit(main())

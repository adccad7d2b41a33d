"""`python -m cxrjax` is the `cxrjax` console script."""

import sys

from cxrjax.cli import main

sys.exit(main())

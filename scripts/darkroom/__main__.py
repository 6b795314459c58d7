"""`python -m darkroom`: the command where the library is on the path but not installed."""

import sys

from darkroom.tools.cli import main

sys.exit(main())

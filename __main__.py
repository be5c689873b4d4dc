"""`python -m upweight`."""

import sys

from .cli import main

sys.exit(main())

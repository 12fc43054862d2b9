"""`python -m lm_harmony.cli`, the same as `lm-harmony`."""

import sys

from lm_harmony.cli.main import main

sys.exit(main())

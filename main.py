"""The command line of the published code: ``python main.py --exp_name ...`` is ``lm-harmony run --no-eval_before_train ...``."""

import sys

from lm_harmony.cli.main import main
from lm_harmony.cli.run_spec import given_flags

if __name__ == "__main__":
    # The published code scores the untouched model only on request. `lm-harmony run` does it by default.
    direct = [] if "eval_before_train" in given_flags(sys.argv) else ["--no-eval_before_train"]
    sys.argv[1:] = ["run", *direct, *sys.argv[1:]]
    sys.exit(main())

"""The reference command line: ``python main.py --exp_name ... --base_model ... --task_name ...`` is ``lm-harmony run ...``."""

import sys

from lm_harmony.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))

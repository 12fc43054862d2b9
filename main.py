"""The reference command line: ``python main.py --exp_name ... --base_model ... --task_name ...`` is ``lm-harmony run ...``."""

import sys

from lm_harmony.cli import main
from lm_harmony.heap import start_tuned

if __name__ == "__main__":
    start_tuned()
    sys.exit(main(["run", *sys.argv[1:]]))

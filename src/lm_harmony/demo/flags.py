"""The demo as a command line: what ``lm-harmony demo`` runs."""

from __future__ import annotations

from pathlib import Path

from lm_harmony.flags import RunFlags, TrainParam
from lm_harmony.recipe import Lora

TASK_FILE = Path(__file__).with_name("micro_reviews.yaml")


def demo_flags(results_dir: Path) -> RunFlags:
    """Make the demo's world below ``results_dir`` and return the run on it; its recipe is sized for a tiny model."""
    from lm_harmony.demo.micro_world import make_micro_world

    world = make_micro_world(results_dir / "demo-world")
    return RunFlags(
        exp_name="demo",
        base_model=str(world.model),
        task_name=str(TASK_FILE),
        data_dir=world.data_dir,
        results_dir=results_dir,
        eval_before_train=True,
        eval_every_epoch=True,
        overwrite=True,
        device="cpu",
        peft_config=Lora(target_modules=("all-linear",)),
        train_param=TrainParam(learning_rate=5e-3, num_train_epochs=3),
    )

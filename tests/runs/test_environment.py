"""Description of the hardware in a record."""

from __future__ import annotations

from pathlib import Path

import torch

from lm_harmony.runs.environment import cpu_name, describe_environment

CPUINFO = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 1
model name\t: AMD EPYC

processor\t: 1
cpu family\t: 26
model name\t: another
"""


def test_the_cpu_name_includes_family_and_model(tmp_path: Path) -> None:
    """Two CPU generations with the same model name get different names. Without the file, no name is invented."""
    (tmp_path / "cpuinfo").write_text(CPUINFO)
    assert cpu_name(tmp_path / "cpuinfo") == "AMD EPYC, cpu family 25, model 1"
    (tmp_path / "cpuinfo").write_text(CPUINFO.replace("family\t: 25", "family\t: 26"))
    assert cpu_name(tmp_path / "cpuinfo") == "AMD EPYC, cpu family 26, model 1"
    assert "AMD EPYC" not in cpu_name(tmp_path / "missing")


def test_the_environment_names_vector_instructions_and_threads() -> None:
    """The vector instructions are those that PyTorch uses. An environment variable can limit them."""
    hardware = describe_environment(torch.device("cpu"), use_git=False)["hardware"]
    assert hardware["vector_instructions"] == torch.backends.cpu.get_cpu_capability()
    assert hardware["threads"] == torch.get_num_threads() and hardware["cpu"]

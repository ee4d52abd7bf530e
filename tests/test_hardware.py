import pytest
import torch
from trl import SFTConfig

from helpers import hardware


def test_describes_this_machine():
    table = hardware.describe_hardware()
    assert set(table) >= {"CPU cores", "memory", "free disk", "device", "precision"}
    assert int(table["CPU cores"]) >= 1
    assert all(isinstance(value, str) for value in table.values())


def test_trainer_accepts_the_precision(tmp_path):
    config = SFTConfig(str(tmp_path), **hardware.training_precision())
    assert not (config.bf16 and config.fp16)
    assert config.use_cpu == (hardware.best_device() == "cpu")


@pytest.mark.parametrize(("device", "speedup", "supported", "expected"), [
    ("cpu", 0.3, False, (False, False)),
    ("cpu", 2.0, False, (True, False)),
    ("mps", 2.0, False, (False, False)),
    ("cuda", 0.3, True, (True, False)),
    ("cuda", 2.0, False, (False, True)),
])
def test_precision_follows_what_is_fast(monkeypatch, device, speedup, supported, expected):
    monkeypatch.setattr(hardware, "best_device", lambda: device)
    monkeypatch.setattr(hardware, "bf16_speedup", lambda: speedup)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: supported)
    precision = hardware.training_precision()
    assert (precision["bf16"], precision["fp16"]) == expected


def test_speedup_is_measured_in_the_right_direction(monkeypatch):
    hardware.bf16_speedup.cache_clear()
    monkeypatch.setattr(hardware, "_matmul_seconds", {torch.float32: 3.0, torch.bfloat16: 1.0}.get)
    assert hardware.bf16_speedup() == 3.0
    hardware.bf16_speedup.cache_clear()

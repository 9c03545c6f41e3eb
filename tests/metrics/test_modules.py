"""The `evaluate` modules load from disk without a network and give the package's numbers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import sta.metrics
from sta.metrics import MODULES, load_metric

OFFLINE = """
import socket
def refuse(*arguments): raise AssertionError(f"network: {arguments}")
socket.create_connection = socket.getaddrinfo = refuse
from sta.metrics import load_metric
marks = load_metric("attribute_accuracy").compute(
    predictions=[["kind=bird", "head=red", "pose=flying"], ["kind=flower", "petals=blue"]],
    references=[["kind=bird", "head=red"], ["kind=flower", "petals=red"]],
)
assert (marks["attributes"], marks["colours"], marks["exact"]) == (0.75, 0.5, 0.5), marks
assert marks["exact_chance"] == 1 / 20, marks
found = load_metric("retrieval_hit_rate").compute(
    predictions=[[1.0, 0.0], [0.0, 1.0], [1.0, 0.1]], references=[[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]],
    image_ids=["a", "b", "b"],
)
assert abs(found["r1_speech_to_image"] - 2 / 3) < 1e-9, found
assert abs(found["r1_image_to_speech_chance"] - 0.5) < 1e-9, found
"""


def test_modules_load_offline_and_compute(tmp_path: Path) -> None:
    root = Path(sta.metrics.__file__).parents[2]
    offline = {"HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    environment = os.environ | offline | {"PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", OFFLINE], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_unknown_module_names_those_on_disk() -> None:
    assert {p.parent.name for p in MODULES.glob("*/*.py") if p.stem != "__init__"} == {
        "attribute_accuracy",
        "retrieval_hit_rate",
    }
    with pytest.raises(ValueError, match="'bleu'.*attribute_accuracy, retrieval_hit_rate"):
        load_metric("bleu")


def test_package_and_rows_import_without_the_heavyweights() -> None:
    code = "import sys, sta.metrics, sta.metrics.rows, sta.metrics.attributes; print([m for m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for heavy in ("torch", "evaluate", "torchmetrics", "datasets", "rich"):
        assert f"'{heavy}'" not in done.stdout

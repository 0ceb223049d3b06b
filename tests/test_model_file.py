"""model_file.py: what a checkpoint is, told without its network, and what is none."""

import json
import pickle
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from test_scoring import write_checkpoint

from posepipe.model_file import MODEL_FILE, Checkpoint, join_ids, read_checkpoint, read_model_config
from posepipe.models import load_model
from posepipe.storage import sha256


def test_a_checkpoint_says_what_it_is_under_any_name_of_its_place(tmp_path):
    uri = write_checkpoint(tmp_path / "run", task="head", size=(64, 96))
    model_id = sha256((tmp_path / "run" / MODEL_FILE).read_bytes())
    found = read_checkpoint(f"{uri}/")
    assert (found.model_id, found.task, found.framing, found.size) == (model_id, "head", "person", (64, 96))
    assert read_checkpoint(f"{uri}/{MODEL_FILE}").model_id == read_checkpoint(f"file://{uri}").model_id == model_id
    config, read_id = read_model_config(uri)
    assert (config.model, config.feature_stride, config.mean_points, read_id) == ("resnet10t", 16, [[0.5, 0.5]] * 2, model_id)


def test_a_checkpoint_is_read_without_torch(tmp_path):
    uri = write_checkpoint(tmp_path / "run")
    code = f"import sys; from posepipe.model_file import read_checkpoint; print(read_checkpoint({uri!r}).task, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["pose", "False"]


@pytest.mark.parametrize("read", [load_model, read_checkpoint])
def test_no_checkpoint_is_a_clear_error(tmp_path, read):
    with pytest.raises(ValueError, match=rf"no checkpoint at {tmp_path}/{MODEL_FILE}: expected the folder of a complete run"):
        read(str(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="no checkpoint at"):
        read(str(tmp_path / "file"))


@pytest.mark.parametrize("data", [b"", b"short", b"<html>" * 100, pickle.dumps({"a": 1}), safetensors.torch.save({"a": torch.zeros(1)})])
def test_a_file_of_something_else_is_a_clear_error(tmp_path, data):
    (tmp_path / MODEL_FILE).write_bytes(data)
    for read in (load_model, read_checkpoint):
        with pytest.raises(ValueError, match="is not a posepipe checkpoint: its header holds no model config"):
            read(str(tmp_path))


def test_a_checkpoint_of_other_config_fields_is_a_clear_error(tmp_path):
    metadata = {"config": json.dumps({"task": "pose", "colour": "red"})}
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / MODEL_FILE, metadata=metadata)
    with pytest.raises(ValueError, match="is not a posepipe checkpoint"):
        read_checkpoint(str(tmp_path))


def test_ids_are_joined_by_task():
    models = [Checkpoint("", name, task, "image", (8, 8)) for name, task in (("a", "pose"), ("b", "head"), ("c", "pose"))]
    assert join_ids(models) == {"pose": "a,c", "head": "b"}

"""The archive of a policy is opened with limits, and nothing in it is unpickled."""

import os
import pickle
import zipfile

import pytest
import torch
from sanawm_env.agents import policy_file


def archive(path, data=b"weights", name="policy.pth"):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(name, data)
    return path


def test_weights_are_read_as_they_are(tmp_path):
    torch.save({"layer": torch.arange(3)}, tmp_path / "w")
    read = policy_file.read_weights(archive(tmp_path / "p.zip", (tmp_path / "w").read_bytes()))
    assert read["layer"].tolist() == [0, 1, 2]


NOISE = {"pickled": pickle.dumps({"a": object}, protocol=2), "text": b"weights", "empty": b""}


@pytest.mark.parametrize("kind", NOISE)
def test_pickles_and_noise_are_refused(tmp_path, kind):
    with pytest.raises(ValueError, match="pickled" if kind == "pickled" else "."):
        policy_file.read_weights(archive(tmp_path / "p.zip", NOISE[kind]))
    with pytest.raises(ValueError, match=r"it has no policy\.optimizer\.pth"):
        policy_file.read_weights(tmp_path / "p.zip", member="policy.optimizer.pth")


def test_archives_that_grow_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(policy_file, "MAX_BYTES", 10_000)
    within = archive(tmp_path / "inner.zip", bytes(50_000), "data").read_bytes()
    for data in (bytes(20_000), within):  # torch's weights are an archive of their own
        with pytest.raises(ValueError, match="weights take more than"):
            policy_file.read_weights(archive(tmp_path / "p.zip", data))


def test_encrypted_and_special_files_are_refused(tmp_path):
    data = bytearray(archive(tmp_path / "p.zip").read_bytes())
    data[data.rfind(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "p.zip").write_bytes(data)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name, says in (("p.zip", "encrypted"), ("pipe", "a pipe"), ("zero", "a device"), (".", "a folder")):
        with pytest.raises(ValueError, match=says):
            policy_file.read_weights(tmp_path / name)

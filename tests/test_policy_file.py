"""The archive of a policy is opened with limits, and nothing in it is unpickled."""

import os
import zipfile

import pytest

from sanawm_env.cli import play


def archive(path, data=b"weights", name="policy.pth"):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(name, data)
    return path


def test_weights_are_read_as_they_are(tmp_path):
    assert play._read_weights(archive(tmp_path / "p.zip")).read() == b"weights"


def test_archives_that_grow_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(play, "MAX_POLICY_BYTES", 10_000)
    within = archive(tmp_path / "inner.zip", bytes(50_000), "data").read_bytes()
    for data in (bytes(20_000), within):  # torch's weights are an archive of their own
        with pytest.raises(ValueError, match="weights take more than"):
            play._read_weights(archive(tmp_path / "p.zip", data))


def test_encrypted_and_special_files_are_refused(tmp_path):
    data = bytearray(archive(tmp_path / "p.zip").read_bytes())
    data[data.rfind(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "p.zip").write_bytes(data)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name, says in (("p.zip", "encrypted"), ("pipe", "a pipe"), ("zero", "a device"), (".", "a folder")):
        with pytest.raises(ValueError, match=says):
            play._read_weights(tmp_path / name)

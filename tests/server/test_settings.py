# SPDX-License-Identifier: BSD-3-Clause
"""Settings, the choice of a backend, and the command line of the module."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from gsb_server import __main__ as command
from gsb_server.settings import Settings, SettingsError, parse_size


@pytest.mark.parametrize(
    ("text", "count"),
    [("1", 1), ("1k", 1024), ("256M", 256 << 20), ("256MiB", 256 << 20), ("4GB", 4 << 30), (" 1.5g ", 3 << 29)],
)
def test_sizes(text: str, count: int) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["", "x", "1x", "M", "1 M M"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(SettingsError, match="not a size"):
        parse_size(text)


def test_variables_and_arguments() -> None:
    environ = {
        "GSB_SOCKET": "/run/x.sock",
        "GSB_PORT": "8765",
        "GSB_SLOT_NBYTES": "1M",
        "GSB_MODEL_TTL": "2.5",
        "GSB_ALLOW_REMOTE": "no",
        "GSB_BACKEND": "sklearn",
        "UNRELATED": "1",
    }
    settings = Settings.from_env(environ, port=99, host=None)
    assert settings.socket == Path("/run/x.sock")
    assert (settings.port, settings.slot_nbytes, settings.model_ttl) == (99, 1 << 20, 2.5)
    assert (settings.allow_remote, settings.backend, settings.host) == (False, "sklearn", "127.0.0.1")
    assert Settings.from_env({"GSB_SOCKET": ""}).socket is None


@pytest.mark.parametrize(
    ("environ", "name"),
    [
        ({"GSB_PORT": "http"}, "GSB_PORT"),
        ({"GSB_SLOT_NBYTES": "big"}, "GSB_SLOT_NBYTES"),
        ({"GSB_ALLOW_REMOTE": "perhaps"}, "GSB_ALLOW_REMOTE"),
        ({"GSB_OUTPUT_TIMEOUT": "-1"}, "output_timeout"),
        ({"GSB_OUTPUT_TIMEOUT": "nan"}, "output_timeout"),
        ({"GSB_PORT": "70000"}, "port"),
        ({"GSB_OUTPUT_SLOTS": "0"}, "output_slots"),
        ({"GSB_PORT": "80", "GSB_HOST": "0.0.0.0"}, "host"),
    ],
)
def test_errors_name_the_setting(environ: dict[str, str], name: str) -> None:
    with pytest.raises(SettingsError, match=name):
        Settings.from_env(environ)


def test_every_field_is_documented() -> None:
    assert Settings.__doc__ is not None
    undocumented = {field.name for field in dataclasses.fields(Settings) if field.name not in Settings.__doc__}
    assert undocumented == set()


def test_a_wrong_setting_ends_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GSB_PORT", "http")
    assert command.main([]) == 2
    assert "GSB_PORT" in capsys.readouterr().err


def test_an_address_in_use_ends_the_command(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    monkeypatch.setenv("GSB_TOKEN", "x" * 32)
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind("s")
        taken.listen()
        assert command.main(["--socket", "s"]) == 3
    assert "listening on s already" in capsys.readouterr().err
    Path("file").touch()
    assert command.main(["--socket", "file"]) == 3
    assert "not a socket" in capsys.readouterr().err
    assert command.main(["--socket", "x" * 200]) == 3
    assert "longer than" in capsys.readouterr().err

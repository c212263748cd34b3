"""A disk that is full ends the command in one line, and the experiment goes on once there is room."""

from ray_deltastn import cli


def test_the_command_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    config = tmp_path / "tiny.yaml"
    config.write_text("task: tests.tune.tiny:build\n")

    def full(*arguments):
        raise OSError(28, "No space left on device", str(tmp_path))

    monkeypatch.setattr(cli, "run_experiment", full)
    assert cli.main(["run", str(config), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("ray-deltastn: [Errno 28] No space left on device")
    assert said.endswith("; free some, then continue with --resume\n")

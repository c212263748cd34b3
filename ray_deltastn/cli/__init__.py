"""The command `ray-deltastn`: run an experiment or a comparison, show its progress, or train its best trial again."""

from ray_deltastn.cli.command import main as main

#!/bin/sh
# Try an installed package as a user would: its version, its tasks, a task to begin with, and a short run of it.
# $1: the folder of the environment's programs.
set -eu
bin=$1
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
cd "$home"
"$bin/python" -m pip check
"$bin/ray-deltastn" --version
"$bin/ray-deltastn" tasks
"$bin/ray-deltastn" init my_task.py
"$bin/ray-deltastn" run my_task.yaml train.epochs=3 tune.num_samples=2
test -s results/my_task/report.html
test -s results/my_task/model.pt
"$bin/ray-deltastn" status results/my_task

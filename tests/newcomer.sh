#!/bin/sh
# What a newcomer does, with a wheel in a new environment outside the checkout.
# usage: newcomer.sh WHEEL REQUIREMENTS [OPTIONS OF PIP]
set -eu
[ -f "$1" ] || { echo "$1: no such wheel" >&2; exit 2; }
wheel=$(realpath "$1")
requirements=$(realpath "$2")
shift 2
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@" -r "$requirements"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps "$wheel"
cd "$folder"
PATH=$folder/venv/bin:$PATH
alexnet2012 --version
alexnet2012 train recipe=code145 model=small schedule=constant max_steps=20 hydra.run.dir=first
python -c 'from skimage import data, io; io.imsave("cup.jpg", data.coffee())'
alexnet2012 predict checkpoint=first images=cup.jpg
alexnet2012 reproduce 'parts=[audit,exactness]' out=reproduction
test -s reproduction/report.html

#!/bin/sh
# Makes every golden file again: golden/make.sh VENV, where VENV has requirements.txt installed.
set -eu
venv=${1:?usage: golden/make.sh VENV}
here=$(dirname "$0")
for script in models quant train rl/rl rl/ppo preference/preference preference_train/preference_train gkd/gkd gkd/gkd_train; do
    "$venv/bin/python" "$here/$script.py"
done

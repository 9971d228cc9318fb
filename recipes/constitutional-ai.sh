#!/bin/sh
# Constitutional AI, both stages from one command, with a report by principle for each.
#
#   recipes/constitutional-ai.sh MODEL PROMPTS SERVER OUT [CONSTITUTION]
#
# MODEL is a chat model (a folder), PROMPTS a file of prompts, SERVER an OpenAI-compatible server that criticises, revises
# and judges, OUT a folder. Called again after it was stopped, it goes on where it was. Options for every run come
# from the environment: FEEDBACK (of `posttrain feedback revise` and `judge`), RESPOND (of `judge`), SFT and DPO (of
# `posttrain run`, as `--set stage.0.train.steps=100`); POSTTRAIN names the program.
#
# With an adapter (SFT="--set stage.0.train.method=lora") the first stage leaves an adapter alone; it is merged into MODEL, as
# OUT/sft-merged, which then replies and is trained further. That of the second stage stays an adapter, of the model in its base.
set -eu

posttrain=${POSTTRAIN:-posttrain}
mkdir -p "$4"
model=$1 prompts=$2 server=$3 out=$(cd "$4" && pwd)
if [ -d "$model" ]; then model=$(cd "$model" && pwd); fi
constitution=${5:-$out/constitution.toml}
[ -f "$constitution" ] || "$posttrain" feedback constitution > "$constitution"

recipe() { # NAME TYPE BASE DATA
    printf 'name = "%s"\n[model]\nbase = "%s"\n[[stage]]\ntype = "%s"\ndata.train = ["%s"]\n' "$1" "$3" "$2" "$4" > "$out/$1.toml"
}

train() { # NAME, options
    name=$1
    shift
    [ -f "$out/$name/stages/01-$name/outcome.json" ] && return
    if [ -d "$out/$name" ]; then set -- "$@" --resume; fi
    "$posttrain" run "$out/$name.toml" --out "$out/$name" "$@"
}

trained() { # NAME BASE; prints the folder of the stage's model
    stage=$out/$1/stages/01-$1
    if [ -d "$stage/model" ]; then
        echo "$stage/model"
        return
    fi
    [ -d "$out/$1-merged" ] || "$posttrain" merge --model "$2" --adapter "$stage/adapter" --out "$out/$1-merged" >&2 || exit
    echo "$out/$1-merged"
}

# Stage 1: replies, critiques, revisions; supervised fine-tuning on the last revisions.
# shellcheck disable=SC2086 # the options are words
"$posttrain" feedback revise --constitution "$constitution" --server "$server" --data "$prompts" --rounds 2 \
    --out "$out/revised.jsonl" ${FEEDBACK:-}
recipe sft sft "$model" "$out/revised.jsonl"
# shellcheck disable=SC2086
train sft ${SFT:-}
tuned=$(trained sft "$model")

# Stage 2: two replies of that model to each prompt, judged by principle; direct preference optimisation.
# shellcheck disable=SC2086
"$posttrain" feedback judge --constitution "$constitution" --server "$server" --prompts "$prompts" \
    --respond "$tuned" --principles 2 --out "$out/judged.jsonl" ${FEEDBACK:-} ${RESPOND:-}
recipe dpo dpo "$tuned" "$out/judged.jsonl"
# shellcheck disable=SC2086
train dpo ${DPO:-}

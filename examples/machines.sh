#!/bin/bash
# Train on several machines with GPUs, without Slurm: start this on each of them; the first has rank 0.
#   bash examples/machines.sh RANK MACHINES GPUS_PER_MACHINE ADDRESS_OF_THE_FIRST [SETTINGS...]
#   bash examples/machines.sh 0 2 4 10.0.0.1 --recipe resnet9        on 10.0.0.1
#   bash examples/machines.sh 1 2 4 10.0.0.1 --recipe resnet9        on the other
# The machines reach each other on port 29500 (or PORT), in a private network; the folder `runs` is on a disk that all of
# them see. If one machine fails, stop the others and start all again: the run continues from its newest checkpoint.
set -euo pipefail
if [ $# -lt 4 ]; then
    sed -n '3,5s/^# *//p' "$0" >&2
    exit 2
fi
rank=$1 machines=$2 gpus=$3 address=$4
shift 4

accelerate launch --multi_gpu \
    --num_machines "$machines" --num_processes "$((machines * gpus))" \
    --machine_rank "$rank" --main_process_ip "$address" --main_process_port "${PORT:-29500}" \
    --mixed_precision fp16 --dynamo_backend no \
    -m cifar10_accel.train "$@"

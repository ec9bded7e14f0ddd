#!/bin/bash
# Train on several machines, with GPUs or without, and without Slurm: start this on each; the first has rank 0.
#   bash examples/machines.sh RANK MACHINES PROCESSES_PER_MACHINE ADDRESS_OF_THE_FIRST [SETTINGS...]
#   bash examples/machines.sh 0 2 4 10.0.0.1 --recipe resnet9        on 10.0.0.1, with four GPUs
#   bash examples/machines.sh 1 2 4 10.0.0.1 --recipe resnet9        on the other
# The folder `runs` is on a disk that all machines see. They are in a private network without a firewall between them:
# besides PORT (29500) of the first, processes connect to random ports, at the address that a machine's own name resolves
# to. Where that is 127.0.1.1, set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the network interface, such as eth0.
# A machine that does not come is waited for two minutes. If one fails, start all again: the run continues from its
# newest checkpoint.
set -euo pipefail
if [ $# -lt 4 ]; then
    sed -n '3,5s/^# *//p' "$0" >&2
    exit 2
fi
rank=$1 machines=$2 processes=$3 address=$4
shift 4
precision=no
if nvidia-smi --list-gpus >/dev/null 2>&1; then
    precision=fp16
fi

accelerate launch --multi_gpu \
    --num_machines "$machines" --num_processes "$((machines * processes))" \
    --machine_rank "$rank" --main_process_ip "$address" --main_process_port "${PORT:-29500}" \
    --rdzv_conf timeout=120 --mixed_precision "${PRECISION:-$precision}" --dynamo_backend no \
    -m cifar10_accel.train "$@"

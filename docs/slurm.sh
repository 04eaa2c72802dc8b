#!/bin/bash
# sbatch docs/slurm.sh experiment_rerank.py with temp_dir=logs/long ...: a training in as many jobs as it takes, one
# process a GPU, on as many nodes as are asked for
#SBATCH --nodes=1 --ntasks-per-node=1 --gpus-per-task=1 --cpus-per-task=8 --time=12:00:00
#SBATCH --signal=USR1@120 --requeue --open-mode=append

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=$((10000 + SLURM_JOB_ID % 50000))

# Two minutes before its time is up Slurm sends SIGUSR1 to what srun has started. That ends its iteration, saves, and
# ends with 128 + the signal's number; after a failed node or a preemption Slurm itself starts the job anew.
# Without a binding all tasks of a node see its GPUs, and each takes that of its number. Where one hangs, the others end,
# and five minutes later so does it.
srun --wait=300 --gpu-bind=none bash -c 'WORLD_SIZE=$SLURM_NTASKS RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID \
    LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE exec python "$@"' - "$@" continue_run=True
code=$?
if [ $code -eq $((128 + $(kill -l USR1))) ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $code

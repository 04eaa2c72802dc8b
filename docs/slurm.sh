#!/bin/bash
# sbatch docs/slurm.sh experiment_rerank.py with temp_dir=logs/long ...: a training in as many jobs as it takes
#SBATCH --gres=gpu:1 --cpus-per-task=8 --time=12:00:00
#SBATCH --signal=USR1@120 --requeue --open-mode=append

# Two minutes before its time is up Slurm sends SIGUSR1 to what srun has started. That ends its iteration, saves, and
# ends with 128 + the signal's number; after a failed node or a preemption Slurm itself starts the job anew.
srun python "$@" continue_run=True
code=$?
if [ $code -eq $((128 + $(kill -l USR1))) ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $code

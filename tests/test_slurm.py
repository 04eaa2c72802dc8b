"""`docs/slurm.sh` under a stand-in for the scheduler, which signals each job once and starts what is put back."""

import json
import os
import subprocess
import sys

from tests import ROOT
from tests.test_commands import flags
from tests.test_continue import command_of

SRUN = """#!/bin/bash
while [[ $1 = --* ]]; do shift; done
for task in $(seq 0 $((SLURM_NTASKS - 1))); do
    SLURM_PROCID=$task SLURM_LOCALID=$task "$@" & tasks="$tasks $!"
done
if [ ! -e "$JOBS/signalled" ]; then
    until [ -e "$JOBS/run/last.pt" ]; do sleep 0.1; done
    touch "$JOBS/signalled"
    kill -USR1 $tasks
fi
for task in $tasks; do wait $task || code=$?; done
exit $code
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> "$JOBS/requeued"; fi
"""


def test_a_job_of_two_ranks_is_requeued_at_its_time_limit_and_resumes(tiny, neighbours, tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    python = f'#!/bin/bash\nexec {sys.executable} "$@"\n'
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "python": python}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    _, settings = command_of("rerank", tiny, neighbours, tmp_path / "run")
    command = ["bash", ROOT / "docs" / "slurm.sh", "-m", "tests.narrow", "experiment_rerank.py", "-F", tmp_path / "log"]
    command += ["with", *flags(settings)]
    scheduler = {"PATH": f"{programs}:{os.environ['PATH']}", "SLURM_JOB_ID": str(os.getpid()), "JOBS": str(tmp_path)}
    scheduler |= {
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_JOB_NODELIST": "here",
        "OMP_NUM_THREADS": "1",
    }
    first, second = (
        subprocess.run(command, cwd=ROOT, env=os.environ | scheduler, capture_output=True, text=True, timeout=300)
        for _ in range(2)
    )
    assert (first.returncode, second.returncode) == (138, 0), first.stderr[-1000:] + second.stderr[-1000:]
    assert (tmp_path / "requeued").read_text() == f"requeue {os.getpid()}\n"
    statuses = [json.loads((tmp_path / "log" / number / "run.json").read_text())["status"] for number in "12"]
    assert statuses == ["INTERRUPTED", "COMPLETED"]
    scalars = json.loads((tmp_path / "log" / "2" / "metrics.json").read_text())
    assert len(scalars["train.loss"]["values"]) == 6

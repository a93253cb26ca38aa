#!/usr/bin/env bash
# A SLURM cluster of one node on this machine's loopback, for tests: munged, slurmctld and slurmd, as root or not, without
# systemd, cgroups or accounting, all of its files in DIR.
#
#   apt-get install -y --no-install-recommends slurm-wlm munge
#   eval "$(tests/slurm/cluster.sh start DIR)"      # starts it; prints `export SLURM_CONF=...` for those who use it
#   tests/slurm/cluster.sh stop DIR                 # cancels what runs, ends exactly these processes
#
# CPUS (default 2), MEMORY (MB, 4000) and GPUS (0) are what the node claims to have; its GPUs are device nodes without a
# device, which only root can make.
set -euo pipefail

dir=$(realpath -m "${2:?usage: cluster.sh start|stop DIR}")
host=$(hostname -s) user=$(id -un)
export SLURM_CONF=$dir/slurm.conf
PATH=$PATH:/usr/sbin:/sbin

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

configure() {
    local gres="" number
    : > "$dir/gres.conf"
    for number in $(seq 0 $((${GPUS:-0} - 1))); do
        mknod "$dir/gpu$number" c 1 3
        echo "NodeName=$host Name=gpu File=$dir/gpu$number" >> "$dir/gres.conf"
        gres="Gres=gpu:${GPUS}"
    done
    # cred_expire: a job that is started again need not wait the two minutes that its old credential is good for.
    cat > "$SLURM_CONF" <<EOF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$dir/munge/socket,cred_expire=5
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=1,sched_interval=1,bf_interval=1,sched_min_interval=0
SlurmdParameters=config_overrides
PropagateResourceLimits=NONE
ReturnToService=2
MinJobAge=600
InactiveLimit=0
KillWait=5
OverTimeLimit=0
GresTypes=gpu
NodeName=$host NodeAddr=127.0.0.1 CPUs=${CPUS:-2} RealMemory=${MEMORY:-4000} $gres State=UNKNOWN
PartitionName=test Nodes=$host Default=YES MaxTime=INFINITE State=UP
EOF
}

start() {
    mkdir -p "$dir"/{munge,state,spool}
    chmod 700 "$dir/munge"
    head -c 1024 /dev/urandom > "$dir/munge/key"
    chmod 400 "$dir/munge/key"
    configure
    munged --force --key-file="$dir/munge/key" --socket="$dir/munge/socket" --pid-file="$dir/munged.pid" \
        --log-file="$dir/munged.log" --seed-file="$dir/munge/seed"
    slurmctld
    slurmd -N "$host"
    for _ in $(seq 60); do
        [[ $(sinfo --noheader --format=%T 2> /dev/null) == idle* ]] && echo "export SLURM_CONF=$SLURM_CONF" && return
        sleep 0.25
    done
    echo "no node after 15 s; the ends of the logs in $dir:" >&2
    tail -n 5 "$dir"/*.log >&2
    stop
    return 1
}

stop() {
    local pid
    scancel --user="$user" 2> /dev/null || true
    for _ in $(seq 40); do # jobs that ignore SIGTERM are killed KillWait seconds later
        [[ -z $(squeue --noheader 2> /dev/null) ]] && break
        sleep 0.25
    done
    for daemon in slurmd slurmctld munged; do
        pid=$(cat "$dir/$daemon.pid" 2> /dev/null) || continue
        kill "$pid" 2> /dev/null || continue
        for _ in $(seq 40); do kill -0 "$pid" 2> /dev/null || continue 2; sleep 0.25; done
        kill -KILL "$pid" || true
    done
}

case $1 in
    start) start ;;
    stop) stop ;;
    *) echo "usage: cluster.sh start|stop DIR" >&2; exit 2 ;;
esac

#!/usr/bin/env bash
# A Slurm cluster on this one Debian host, for tests: a controller and four node daemons, no systemd, no cgroups, no
# accounting. GPUs are character devices that nothing opens. Root only; /etc/slurm/{slurm,gres}.conf are put aside meanwhile.
#   cluster.sh start | stop | kill-node NAME | start-node NAME
set -euo pipefail
export LC_ALL=C PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
NODES=(gpu1 gpu2 long1 cpu1)
VAR=/var/lib/slurm LOG=/var/log/slurm RUN=/run/slurm-tests

# runs PIDFILE PROGRAM: whether the process of the file is there and is that program
runs() {
    local pid
    pid=$(tr -dc 0-9 2>/dev/null <"$1") && [ -n "$pid" ] && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$2" ] &&
        ! grep -q '^State:[[:space:]]*Z' "/proc/$pid/status"
}

# end PIDFILE PROGRAM [SIGNAL]
end() {
    local n=0
    if runs "$1" "$2"; then kill "-${3:-TERM}" "$(tr -dc 0-9 <"$1")" || true; fi
    while runs "$1" "$2"; do
        [ $((n += 1)) -lt 200 ] || kill -9 "$(tr -dc 0-9 <"$1")" || true
        sleep 0.1
    done
    rm -f "$1"
}

# within SECONDS COMMAND...: waits until the command succeeds
within() {
    local until=$((SECONDS + $1)) said
    shift
    until said=$("$@" 2>&1); do
        [ $SECONDS -lt $until ] || { echo "cluster.sh: gave up on $*: $said" >&2; return 1; }
        sleep 0.2
    done
}

install_packages() {
    command -v slurmctld slurmd munged squeue >/dev/null && return
    export DEBIAN_FRONTEND=noninteractive
    local policy=/usr/sbin/policy-rc.d mine=
    # The packages must not start daemons with a configuration that is not there yet.
    if [ ! -e $policy ]; then mine=1; printf '#!/bin/sh\nexit 101\n' >$policy; chmod 755 $policy; fi
    apt-get update -qq && apt-get install -y -qq --no-install-recommends munge slurmctld slurmd slurm-client >/dev/null ||
        { [ -z "$mine" ] || rm $policy; echo "cluster.sh: apt-get cannot install Slurm" >&2; exit 1; }
    [ -z "$mine" ] || rm $policy
}

configure() {
    local host
    host=$(hostname -s)
    install -d /etc/slurm "$RUN" "${NODES[@]/#/$VAR/}"
    if [ -e /etc/slurm/slurm.conf ] && ! grep -q '^ClusterName=tests$' /etc/slurm/slurm.conf; then
        for name in slurm gres; do mv -f /etc/slurm/$name.conf{,.before-tests} 2>/dev/null || true; done
    fi
    install -d -o slurm -g slurm "$LOG" "$VAR/controller" "$RUN"
    cat >/etc/slurm/slurm.conf <<CONF
ClusterName=tests
SlurmctldHost=$host(127.0.0.1)
SlurmUser=slurm
SlurmdUser=root
AuthType=auth/munge
CryptoType=crypto/munge
SlurmctldPort=17200
SlurmctldPidFile=$RUN/slurmctld.pid
SlurmctldLogFile=$LOG/slurmctld.log
SlurmdPidFile=$RUN/%n.pid
SlurmdLogFile=$LOG/%n.log
SlurmdSpoolDir=$VAR/%n
StateSaveLocation=$VAR/controller
AccountingStorageType=accounting_storage/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=5,bf_interval=5
# a job that takes more memory than it asked for is killed within two seconds
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
JobAcctGatherParams=OverMemoryKill
KillWait=5
CompleteWait=0
MinJobAge=3600
JobRequeue=1
EnforcePartLimits=ALL
SlurmdTimeout=20
TCPTimeout=5
ReturnToService=2
SlurmdParameters=config_overrides
NodeName=DEFAULT CPUs=8 RealMemory=16000
NodeName=gpu1 NodeHostname=$host NodeAddr=127.0.0.1 Port=17201 Gres=gpu:2
NodeName=gpu2 NodeHostname=$host NodeAddr=127.0.0.1 Port=17202 Gres=gpu:2
NodeName=long1 NodeHostname=$host NodeAddr=127.0.0.1 Port=17203 Gres=gpu:2
NodeName=cpu1 NodeHostname=$host NodeAddr=127.0.0.1 Port=17204
PartitionName=DEFAULT MaxTime=60 DefMemPerCPU=500 State=UP
PartitionName=cpu Nodes=cpu1 Default=YES
PartitionName=gpu Nodes=gpu[1-2]
PartitionName=long Nodes=long1
CONF
    cat >/etc/slurm/gres.conf <<CONF
AutoDetect=off
NodeName=gpu[1-2],long1 Name=gpu File=/dev/null
NodeName=gpu[1-2],long1 Name=gpu File=/dev/zero
CONF
}

start_munge() {
    install -d -o munge -g munge /run/munge
    install -d -m 700 -o munge -g munge /var/log/munge /var/lib/munge /etc/munge
    if [ ! -s /etc/munge/munge.key ]; then
        (umask 077; head -c 1024 /dev/urandom >/etc/munge/munge.key)
        chown munge:munge /etc/munge/munge.key
    fi
    runs /run/munge/munged.pid munged || runuser -u munge -- munged --force
    within 20 sh -c 'munge -n | unmunge'
}

all_idle() { [ "$(sinfo -h -N -o '%N %T' | sort -u | grep -c ' idle$')" = ${#NODES[@]} ]; }

case ${1:-} in
start)
    install_packages
    configure
    start_munge
    runs "$RUN/slurmctld.pid" slurmctld || slurmctld </dev/null >/dev/null
    within 30 scontrol ping
    for node in "${NODES[@]}"; do "$0" start-node "$node"; done
    within 60 all_idle || { sinfo -N -l; sinfo -R; exit 1; } >&2
    ;;
stop)
    if scontrol ping >/dev/null 2>&1; then
        squeue -h -o %A | xargs -r scancel || true
        within 30 sh -c '[ -z "$(squeue -h)" ]' || true
    fi
    for node in "${NODES[@]}"; do end "$RUN/$node.pid" slurmd; done
    end "$RUN/slurmctld.pid" slurmctld
    end /run/munge/munged.pid munged
    rm -rf "$VAR/controller" "${NODES[@]/#/$VAR/}"
    # Where it names a controller that is gone, every start of Snakemake waits for it for nine seconds.
    for name in slurm gres; do
        rm -f /etc/slurm/$name.conf
        mv -f /etc/slurm/$name.conf{.before-tests,} 2>/dev/null || true
    done
    ;;
kill-node) # as a power cut would: the daemon, the jobs' processes, and the keepers of their steps, at once
    end "$RUN/$2.pid" slurmd KILL
    for process in /proc/[0-9]*; do
        tr '\0' '\n' 2>/dev/null <"$process/environ" | grep -qx "SLURMD_NODENAME=$2" || continue
        parent=$(awk '/^PPid:/ {print $2}' "$process/status" 2>/dev/null) || continue
        [ "$(cat "/proc/$parent/comm" 2>/dev/null)" != slurmstepd ] || kill -9 "$parent" 2>/dev/null || true
        kill -9 "${process#/proc/}" 2>/dev/null || true
    done
    ;;
start-node) runs "$RUN/$2.pid" slurmd || slurmd -N "$2" </dev/null >/dev/null ;;
*) sed -n '2,5p' "$0" >&2; exit 2 ;;
esac

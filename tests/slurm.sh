#!/usr/bin/env bash
# Sweeps on a real Slurm: slurmctld and slurmd on this machine's loopback, with their files in a folder of their own. Takes
# `aolab` from $AOLAB or builds it. Installs Debian's slurm-wlm and munge where it may; else it says why it is skipped, and passes.
set -euo pipefail
cd "$(dirname "$0")/.."

skip() { echo "skipped: $1"; exit 0; }
fail() { echo "FAILED: $1"; tail -n 30 "$dir"/*.log "$dir"/sweep*.txt 2>/dev/null || true; exit 1; }

if ! command -v slurmctld >/dev/null || ! command -v slurmd >/dev/null || ! command -v munged >/dev/null; then
    [ "$(id -u)" = 0 ] || skip "Slurm is not installed, and only root may install it"
    command -v apt-get >/dev/null || skip "Slurm is not installed, and there is no apt"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge; } \
        >/dev/null 2>&1 || skip "Slurm could not be installed"
fi
[ "$(id -u)" = 0 ] || skip "slurmd starts tasks as root only"
if [ -z "${AOLAB:-}" ]; then
    cargo build --locked --release --bin aolab
    AOLAB="${CARGO_TARGET_DIR:-$PWD/target}/release/aolab"
fi

dir="$(mktemp -d)"
host="$(hostname -s)"
cpus="$(nproc)"
pids=()
stop() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    rm -rf "$dir"
}
trap stop EXIT
chmod 755 "$dir"
mkdir -p "$dir/state" "$dir/spool"
(umask 077; head -c 1024 /dev/urandom > "$dir/munge.key")
munged --foreground --force --key-file="$dir/munge.key" --socket="$dir/munge.socket" --pid-file="$dir/munge.pid" \
    --log-file="$dir/munge.log" --seed-file="$dir/munge.seed" >"$dir/munged.log" 2>&1 &
pids+=($!)
cat > "$dir/slurm.conf" <<CONF
ClusterName=aolab
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket,cred_expire=5
CredType=cred/munge
SlurmctldPort=16817
SlurmdPort=16818
MpiDefault=none
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=0
ReturnToService=2
KillWait=1
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF="$dir/slurm.conf"
sleep 0.5
slurmctld -D -i >"$dir/slurmctld.out.log" 2>&1 &
pids+=($!)
slurmd -D -N "$host" >"$dir/slurmd.out.log" 2>&1 &
pids+=($!)
for _ in $(seq 100); do
    sinfo --noheader --format=%T 2>/dev/null | grep -q idle && break
    sleep 0.3
done
sinfo --noheader --format=%T 2>/dev/null | grep -q idle || skip "Slurm does not start here: $(tail -n 2 "$dir"/slurmd.log "$dir"/slurmctld.log 2>/dev/null | tr '\n' ' ')"

cd "$dir"
aolab() { "$AOLAB" --store "$dir/runs.sqlite" "$@"; }
rows() { aolab --json -c "runs where 'sweep != \"\"' --limit 1000" | tr '}' '\n' | grep -c '"run":' || true; }
eval='eval perplexity --windows 1 --context 64'

echo "== an array job gives the numbers of this machine"
grid="\"quantize int4-weight-only --group-size {32,64,128} | $eval\""
aolab -c "load tiny; sweep --on slurm --folder shared $grid | save elsewhere.csv" >sweep1.txt 2>&1 || fail "the sweep on Slurm"
"$AOLAB" --no-store -c "load tiny; sweep --jobs 1 $grid | save here.csv" >sweep2.txt 2>&1 || fail "the sweep here"
# Settings and perplexity; speeds differ.
[ "$(cut -d, -f1-3 elsewhere.csv)" = "$(cut -d, -f1-3 here.csv)" ] || { cat elsewhere.csv here.csv; fail "the numbers differ"; }
[ "$(rows)" = 3 ] || fail "3 rows wanted, got $(rows)"

echo "== a task that is killed and one that is requeued"
long="\"quantize int8-weight-only | eval perplexity --windows 96 --context {64,128,256,512}\""
aolab -c "load tiny; sweep --on slurm --folder killed $long" >sweep3.txt 2>&1 &
sweep=$!
for _ in $(seq 200); do
    task="$(pgrep -f "aolab.*sweep --folder $dir/killed --trial 1" | head -n 1 || true)"
    [ -n "$task" ] && break
    sleep 0.1
done
[ -n "${task:-}" ] || fail "no task was seen"
kill -KILL "$task"
for _ in $(seq 200); do
    waiting="$(squeue --noheader --array --states=RUNNING --format=%i | head -n 1)"
    [ -n "$waiting" ] && break
    sleep 0.1
done
[ -z "${waiting:-}" ] || scontrol requeue "$waiting" || true
wait "$sweep" || fail "the sweep with dead tasks"
grep -q "no row yet" sweep3.txt && fail "a trial is missing"
[ "$(grep -c '^job ' sweep3.txt)" -ge 2 ] || { cat sweep3.txt; fail "nothing was submitted again"; }
[ "$(rows)" = 7 ] || fail "7 rows wanted, got $(rows)"

echo "== submitted, left, and collected later"
aolab -c "load tiny; sweep --on slurm --no-wait --folder later \"quantize int8-weight-only --granularity {per-row,per-tensor} | $eval\"" >sweep4.txt 2>&1 || fail "submitting"
for _ in $(seq 300); do
    [ "$(find later/rows -name '*.json' | wc -l)" = 2 ] && break
    sleep 0.1
done
aolab -c "sweep --resume --folder later" >sweep5.txt 2>&1 || fail "collecting"
grep -q "no row yet" sweep5.txt && fail "a trial was not collected"
[ "$(rows)" = 9 ] || fail "9 rows wanted, got $(rows)"
echo "Slurm $(sinfo --version | cut -d' ' -f2): 9 trials, one killed, one requeued; all rows are there once"

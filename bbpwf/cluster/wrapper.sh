# What every job runs. Bash 4.2 or later; no process is started that is not needed (each costs milliseconds on a
# busy node). Set before this text: B (the submission's folder), E (the event file), BATCH (the submission's id), GROUPS_OF
# and GROUPS_AT (where the kernel says which control groups this process is in, and where it shows what they use).
#
#   lease.<i>       symlink made first, naming the scheduler's job that owns element i; a duplicate ends here
#   exit.<i>.<r>    the exit record of restart r: one line, complete when it ends in " ."
#   cancel[.<i>]    present: do not begin
#
# Event lines carry the same facts; they are pushed to the agent by a reader of E.
i=${SLURM_ARRAY_TASK_ID:-${BBPWF_INDEX:-0}}
r=${SLURM_RESTART_COUNT:-0}
if [ -n "${SLURM_ARRAY_JOB_ID:-}" ]; then id=${SLURM_ARRAY_JOB_ID}_$i; else id=${BBPWF_ID:-${SLURM_JOB_ID:-?}}; fi
node=${SLURMD_NODENAME:-$HOSTNAME}
now() { t=${EPOCHREALTIME:-$(date +%s.%N)}; t=${t/,/.}; }
now; t0=$t
own=$id
if [ -n "${BBPWF_LOCAL:-}" ]; then # the process is the job: nothing else tells one start of it from the next
    read -r stat <"/proc/$$/stat"
    rest=(${stat##*) })
    own=$id:$$:${rest[19]}
    unset BBPWF_LOCAL
fi

tries=60 # on a full disk a lease and a record can wait for a minute; a job without either is a job lost
while ! ln -s "$own" "$B/lease.$i" 2>/dev/null; do
    owner=$(readlink "$B/lease.$i")
    [ "$owner" = "$own" ] && break
    if [ -z "$owner" ] && [ $((tries--)) -gt 0 ]; then
        sleep 1
        continue
    fi
    if [ -z "$owner" ]; then
        echo "bbpwf: cannot take the lease $B/lease.$i" >&2
        printf 'F %s %s %s %s %s .\n' "$BATCH" "$i" "$id" "$r" "$t0" >>"$E"
        exit 74
    fi
    echo "bbpwf: $owner already runs this job; $id ends" >&2
    printf 'D %s %s %s %s %s .\n' "$BATCH" "$i" "$id" "$r" "$t0" >>"$E"
    exit 73
done
peak() { # most memory that the job had on this node, MiB, where Slurm gave it a control group of its own
    local controllers group file bytes
    [ -z "${BBPWF_ID:-}" ] || return # a step shares its allocation's
    while IFS=: read -r _ controllers group; do
        case $group in */job_*/*) group=${group%"/${group#*/job_*/}"} ;; */job_*) ;; *) continue ;; esac
        case $controllers in
            "") file=$GROUPS_AT$group/memory.peak ;;
            *memory*) file=$GROUPS_AT/memory$group/memory.max_usage_in_bytes ;;
            *) continue ;;
        esac
        read -r bytes <"$file" && memory=" m$(((bytes + 1048575) / 1048576))"
    done <"$GROUPS_OF"
} 2>/dev/null
finish() { # code signal
    now
    local cpu="" memory="" stat rest
    peak
    if read -r stat 2>/dev/null <"/proc/$$/stat"; then # hundredths of a second that ended children had: user, system
        rest=(${stat##*) })
        cpu=" c$((rest[13] + rest[14]))"
    fi
    local record="X $BATCH $i $id $r $1 $2 $t0 $t $node$cpu$memory ."
    local tries=60
    until { printf '%s\n' "$record" >"$B/exit.$i.$r"; } 2>/dev/null || [ $((tries--)) -le 0 ]; do sleep 1; done
    printf '\n%s\n' "$record" >>"$E" # a line of its own, whatever a full disk left of the one before
    exit "$1"
}
if [ -e "$B/cancel" ] || [ -e "$B/cancel.$i" ]; then finish 143 15; fi

mapfile -s "$i" -n 1 -t line <"$B/manifest"
if [ -z "${line[0]:-}" ]; then
    echo "bbpwf: $B/manifest has no line $i" >&2
    finish 74 0
fi
eval "script=${line[0]}"
case $script in
    @*) script=("$B/${script#@}") ;;
    *) script=(-c "${script#=}" bbpwf) ;;
esac
printf 'S %s %s %s %s %s %s .\n' "$BATCH" "$i" "$id" "$r" "$t0" "$node" >>"$E"

signal=0 child=
stop() {
    signal=$1
    [ -n "$child" ] && kill -TERM -- "-$child" 2>/dev/null
}
trap 'stop 15' TERM
trap 'stop 2' INT
trap 'stop 12' USR2
set -m # the script gets a process group of its own, so that a signal reaches all of it
bash "${script[@]}" </dev/null &
child=$!
while :; do
    wait "$child"
    code=$?
    kill -0 "$child" 2>/dev/null || break
done
if [ "$signal" -ne 0 ]; then # that status may be the interrupted wait's; the script's own is still remembered
    wait "$child"
    code=$?
fi
finish "$code" "$signal"

# What an allocation runs: a step for each that the agent asks for in its folder, until nobody needs it any more.
# Bash 4.2 or later. Set before this text: A (the allocation's folder), SPOOL, MAX (most steps at once), IDLE and
# ORPHAN (seconds).
#
#   requests   appended by the agent; a line is complete when it ends in " ."
#                S batch size cpus limit throttle .   run elements 0 to size - 1; limit in seconds, 0 for none
#                C batch position .                   end this one
#                T batch throttle .                   let so many of its elements run at once; 0 for no limit
#                Q .                                  end as soon as nothing runs
#   steps      "S batch position ." when a step begins, "E batch position WORD ." when it is over
#   alive      changed by the agent now and then
#   closed     present: nothing begins here any more
#
# A step runs in wrapper.sh, as a job does: it takes its lease, and leaves its exit record and event lines.
declare -A known pid peers deadline told kill_at cpus_of doubtful throttle
queue=() used=0 part= quit= stopping= fresh=
exec 8<"$A/requests" 9<> <(:) # nothing ever comes from 9: reading it is a pause that needs no process

total=0
for each in ${SLURM_JOB_CPUS_PER_NODE//,/ }; do # e.g. 16(x2),8
    times=1 cpus=${each%%"("*}
    case $each in *"(x"*) times=${each##*x} times=${times%")"} ;; esac
    total=$((total + cpus * times))
done
[ "$total" -gt 0 ] || total=1

take() { # what was asked for since the last look
    local line
    while IFS= read -r line <&8; do
        line=$part$line part=
        case $line in *" .") heed $line ;; esac
    done
    part+=$line
}
heed() {
    local p
    case $1 in
        S)
            : "${throttle[$2]:=$6}"
            for ((p = 0; p < $3; p++)); do
                [ -z "${known[$2.$p]:-}" ] || continue
                known[$2.$p]=1
                [ -L "$SPOOL/batches/$2/lease.$p" ] || queue+=("$2 $p $4 $5") fresh=1
            done
            ;;
        T) throttle[$2]=$3 fresh=1 ;;
        C) [ -n "${pid[$2.$3]:-}" ] && end "$2.$3" CANCELLED ;;
        Q) quit=1 ;;
    esac
}
begin() { # steps in the order they came, as long as they fit; one that is throttled lets others by
    local each later=() full=
    fresh=
    for each in "${queue[@]}"; do
        set -- $each
        [ "$3" -le "$total" ] || set -- "$1" "$2" "$total" "$4"
        if [ -n "$full" ] || ((${#pid[@]} >= MAX || used + $3 > total)); then
            full=1 later+=("$each")
        elif ((throttle[$1] > 0 && ${peers[$1]:-0} >= throttle[$1])); then
            later+=("$each")
        else
            start "$@"
        fi
    done
    queue=("${later[@]}")
}
start() { # batch position cpus limit
    local k=$1.$2
    printf 'S %s %s .\n' "$1" "$2" >>"$A/steps"
    BBPWF_INDEX=$2 BBPWF_ID=$SLURM_JOB_ID/$1_$2 \
        bash "$SPOOL/batches/$1/job.sh" </dev/null >>"$SPOOL/batches/$1/log.$2" 2>&1 8<&- 9<&- &
    pid[$k]=$! cpus_of[$k]=$3
    used=$((used + $3)) peers[$1]=$((${peers[$1]:-0} + 1))
    [ "$4" -eq 0 ] || deadline[$k]=$((SECONDS + $4))
}
end() { # step, why
    [ -z "${told[$1]:-}" ] || return
    told[$1]=$2 kill_at[$1]=$((SECONDS + 10))
    kill -TERM "${pid[$1]}" 2>/dev/null
}
note() { # step, how it ended
    printf 'E %s %s %s .\n' "${1%.*}" "${1##*.}" "$2" >>"$A/steps"
}
settle() { # what nobody ended but a signal
    local k
    for k in "${!doubtful[@]}"; do
        if ((SECONDS > doubtful[$k])); then
            note "$k" FAILED
            unset -v "doubtful[$k]"
        fi
    done
}
look() { # which steps are over, and which must be ended
    local k code word child
    for k in "${!pid[@]}"; do
        if kill -0 "${pid[$k]}" 2>/dev/null; then
            if [ -n "${deadline[$k]:-}" ] && ((SECONDS > deadline[$k])); then end "$k" TIMEOUT; fi
            if [ -n "${kill_at[$k]:-}" ] && ((SECONDS > kill_at[$k])); then
                for child in $(cat "/proc/${pid[$k]}/task/${pid[$k]}/children"); do kill -KILL -- "-$child"; done 2>/dev/null
                ((SECONDS > kill_at[$k] + 10)) && kill -KILL "${pid[$k]}"
            fi
            continue
        fi
        wait "${pid[$k]}"
        code=$?
        case $code in 0) word=COMPLETED ;; 73) word=DUPLICATE ;; *) word=FAILED ;; esac
        if [ -z "${told[$k]:-}" ] && [ $code -gt 128 ]; then
            doubtful[$k]=$((SECONDS + 2)) # the scheduler may be ending us all, and we be the last to hear
        else
            note "$k" "${told[$k]:-$word}"
        fi
        used=$((used - cpus_of[$k])) peers[${k%.*}]=$((peers[${k%.*}] - 1))
        unset -v "pid[$k]" "deadline[$k]" "kill_at[$k]" "cpus_of[$k]"
        fresh=1
    done
}
stop() { # the scheduler ends the allocation: what runs is told, what waits never begins
    stopping=1 queue=()
    : >"$A/closed"
    [ ${#pid[@]} -eq 0 ] || kill -TERM "${pid[@]}" 2>/dev/null
}
trap stop TERM

busy=$SECONDS seen=$SECONDS beat= second= quick=$((SECONDS + 2))
while :; do
    take
    [ -n "$stopping" ] && queue=()
    [ ${#pid[@]} -eq 0 ] || look
    [ -n "$stopping" ] || [ ${#doubtful[@]} -eq 0 ] || settle
    [ -z "$fresh" ] || { begin; quick=$((SECONDS + 2)); }
    if [ $((${#pid[@]} + ${#queue[@]})) -gt 0 ] || { [ -z "$stopping" ] && [ ${#doubtful[@]} -gt 0 ]; }; then
        busy=$SECONDS
    elif [ -n "$quit$stopping" ] || ((SECONDS - busy >= IDLE || SECONDS - seen >= ORPHAN)); then
        break
    fi
    if [ "$SECONDS" != "$second" ]; then
        second=$SECONDS
        IFS= read -r now <"$A/alive" && [ "$now" != "$beat" ] && beat=$now seen=$SECONDS
    fi
    if ((SECONDS < quick)); then read -r -t 0.005 -u 9; else read -r -t 0.05 -u 9; fi # what ends is often followed
done 2>>"$A/errors"
: >"$A/closed"
[ -z "$stopping" ] || exit 143
exit 0

# The far end of bbpwf.transport.framed: runs one command after another in a login shell, for bash 4.2 or later.
# fd 7 brings requests, fd 8 takes answers; $1 is a nonce that starts every answer. Programs are started only for
# the command itself and for data that is large or holds NUL bytes: each costs about a millisecond, as much as reading a
# kilobyte byte by byte, which is how the shell reads.
#
#   request   id limit_ms cap command_length stdin_length NEWLINE command stdin "."
#   answer    nonce id exit_code stdout_length stderr_length flags NEWLINE stdout stderr
#
# The command is shell text that names one program; a t before stdin_length says that stdin is short and has no NUL;
# bbpwf-exists is answered here: + or - for each path, ? for one that may not be seen;
# flags are T (out of time), C (capped), always followed by -.

# whatever a profile script may have left behind
set +eufmCvx
set +o posix
trap - ERR DEBUG RETURN CHLD TERM INT HUP
unset -f head stat rm mv mkfifo mktemp read wait kill printf exec eval
IFS=$' \t\n'
forever=9999999 # seconds; without a limit of its own, read takes a profile's TMOUT for one

nonce=$1
had=${LC_ALL+x} locale=${LC_ALL-}
LC_ALL=C # lengths count bytes
t=$(umask 077 && mktemp -d "${TMPDIR:-/tmp}/bbpwf.XXXXXXXX") || exit 75
trap 'rm -rf -- "$t"' EXIT
mkfifo -m 600 "$t/f" && exec 6<>"$t/f" || exit 75

now() { # milliseconds since some fixed instant
    if [ -n "${EPOCHREALTIME-}" ]; then
        now=${EPOCHREALTIME/[.,]/}
        now=${now%???}
    else
        now=$((SECONDS * 1000))
    fi
}

ended() { # whether the command ends within $1 seconds; then $code is its exit code
    while IFS=' ' read -r -t "$1" rid code <&6; do
        [ "$rid" = "$id" ] && return 0
    done
    kill -0 "$pid" 2>/dev/null && return 1
    wait "$pid" 2>/dev/null
    code=$?
}

trim() { # stream $1 is far over the cap: keep its beginning, let go of the rest
    [ -e "$1.kept" ] || head -c "$((cap + 1))" "$1" >"$1.kept"
    : >"$1"
}

collect() { # stream $1: $size, and if it is short and plain also $text; else fails, and the file holds it
    [ -e "$1.kept" ] && mv -f -- "$1.kept" "$1"
    if IFS= read -r -d '' -n 16384 text <"$1" || [ "${#text}" -gt "$cap" ]; then
        text=
        size=$(stat -c %s -- "$1")
        if [ "$size" -gt "$cap" ]; then
            size=$cap flags=${flags}C
        fi
        return 1
    fi
    size=${#text}
}

look() { # adds to $text whether something is at path $1
    if [ -e "$1" ]; then
        text+=+
        return
    fi
    local above=$1
    while above=${above%/*} && [ -n "$above" ]; do
        if [ -d "$above" ]; then
            [ -x "$above" ] && text+=- || text+=?
            return
        fi
        [ ! -e "$above" ] || break
    done
    text+=-
}

printf '\n%s READY\n' "$nonce" >&8
while IFS=' ' read -r -t $forever id limit cap length input <&7; do
    if [ "$length" -le 1024 ]; then
        IFS= read -r -t $forever -N "$length" command <&7 || exit
    else
        head -c "$length" <&7 >"$t/command"
        IFS= read -r -d '' command <"$t/command"
        [ "${#command}" -eq "$length" ] || exit
    fi
    from=/dev/null large=0
    case $input in
        0) ;;
        t*)
            from=$t/i.$id
            IFS= read -r -t $forever -N "${input#t}" text <&7 && printf %s "$text" >"$from" || exit
            ;;
        *)
            from=$t/i.$id
            [ "$input" -le 65536 ] || large=1
            head -c "$input" <&7 >"$from" || exit
            ;;
    esac
    IFS= read -r -t $forever -N 1 end <&7 && [ "$end" = . ] || exit # a request that was cut short is not run

    case $command in
        "bbpwf-exists "*)
            eval "set -- ${command#* }"
            text=
            for each; do look "$each"; done
            printf '%s\n%s' "$nonce $id 0 ${#text} 0 -" "$text" >&8
            text= command=
            continue
            ;;
    esac

    # files of its own for each command: what one leaves running may go on writing to them
    o=$t/o.$id e=$t/e.$id
    : >"$o" && : >"$e" || exit
    set -m # a process group of its own, so that a time limit ends all of it
    (
        trap : TERM # outlives the command that is told to end, to say how it did
        (
            if [ -n "$had" ]; then LC_ALL=$locale; else unset LC_ALL; fi
            case $command in # the commonest, without a program that only sets a variable
                "env LC_ALL=C stat "* | "env LC_ALL=C dd "* | "env LC_ALL=C bash "*)
                    export LC_ALL=C
                    command=${command#env LC_ALL=C }
                    ;;
            esac
            eval "exec -- $command"
        ) <"$from" >>"$o" 2>>"$e" 6>&-
        code=$?
        echo "$id $code" >&6
        exit $code
    ) 7<&- 8>&- </dev/null >/dev/null 2>&1 &
    pid=$!
    set +m
    flags=
    now
    over=$((now + limit)) checks=0
    until ended 0.1; do
        now
        if [ "$now" -ge "$over" ]; then
            flags=T
            kill -TERM -- "-$pid" 2>/dev/null
            for checks in 1 2 3 4 5 6 7 8 9 10; do ended 0.1 && break; done
            kill -KILL -- "-$pid" 2>/dev/null
            break
        fi
        checks=$((checks + 1))
        if [ $((checks % 2)) -eq 0 ] && { [ -s "$o" ] || [ -s "$e" ]; }; then
            sizes=($(stat -c %s -- "$o" "$e"))
            [ "${sizes[0]}" -gt $((cap + 1048576)) ] && trim "$o"
            [ "${sizes[1]}" -gt $((cap + 1048576)) ] && trim "$e"
        fi
    done
    wait "$pid" 2>/dev/null
    [ "$flags" = T ] && code=124

    collect "$o"
    oplain=$? osize=$size otext=$text
    collect "$e"
    eplain=$?
    head="$nonce $id $code $osize $size $flags-"
    if [ $oplain = 0 ] && [ $eplain = 0 ]; then
        printf '%s\n%s%s' "$head" "$otext" "$text" >&8
    else
        printf '%s\n' "$head" >&8
        if [ $oplain = 0 ]; then printf %s "$otext" >&8; else head -c "$osize" "$o" >&8; fi
        if [ $eplain = 0 ]; then printf %s "$text" >&8; else head -c "$size" "$e" >&8; fi
    fi
    otext= text= command=
    if [ "$((oplain + eplain + large))" != 0 ] || [ $((id % 64)) = 0 ]; then
        rm -f -- "$t"/[oei]*
    fi
done

#!/bin/sh
# First process of the container after tini. Started as root, it gives the state folder to the service's own user and
# becomes that user, keeping of root's rights only those that it takes to give every run's head a uid of its own.
# Started as another user (`--user`), it goes on as that, and serves only if BBPWF_HEADS__REQUIRE_ISOLATION is false: heads
# then share the service's uid. The folder of heads, if it is set, lies on a disk of the machine: a network's file system
# does not let this user give anything away.
set -eu
umask 022

if [ "$(id -u)" -eq 0 ]; then
    for folder in "$BBPWF_STATE_DIR" "${BBPWF_HEADS__FOLDER:-}"; do
        if [ -n "$folder" ] && [ "$(stat -c %u "$folder")" -ne "$(id -u bbpwf)" ]; then
            chown bbpwf:bbpwf "$folder"
        fi
    done
    held=$((0x$(sed -n 's/^CapPrm:[[:space:]]*//p' /proc/self/status)))
    kept=""
    # numbers as in capabilities(7): those that this container was not given are left out
    for each in 0:chown 5:kill 6:setgid 7:setuid; do
        if [ $((held >> ${each%%:*} & 1)) -eq 1 ]; then
            kept="$kept,+${each##*:}"
        fi
    done
    exec setpriv --reuid=bbpwf --regid=bbpwf --clear-groups --no-new-privs \
        --inh-caps="-all$kept" --ambient-caps="-all$kept" -- bbpwf "$@"
fi
exec bbpwf "$@"

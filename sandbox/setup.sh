#!/usr/bin/env bash
# Prepares a Debian 12 machine for bbpwf: `sandbox/setup.sh STEP...`, each step one of
#
#   packages   Debian packages for the sandbox's cluster (installed when root, else their absence is told)
#   accounting Debian packages for the tests on a Slurm that keeps accounting (likewise)
#   browser    Debian packages for the tests that drive a browser (likewise)
#   database   Debian packages for the tests on PostgreSQL (likewise)
#   load       Debian packages for the load on the service in benchmarks (likewise)
#   container  Debian packages for the container image and the tests that run containers (likewise)
#   keycloak   .keycloak: a real Keycloak for the tests of logins, with Debian's Java and Maven (likewise)
#   venv       .venv: bbpwf, its service, sandbox and developer tools, as pinned in constraints.txt
#   peers      .peers: public GA4GH software that the tests meet the service with, as pinned in sandbox/peers.txt
#   software   .software: the cluster's software environment, as pinned in sandbox/software.txt
#   marks      prints the pytest marker expression for what this machine can run; does nothing
#
# Every step says in one line what it does, and does nothing when all is there. Stamps in .stamps/ hold a hash of
# what an environment was made from; a stamp alone is not believed, the environment has to answer too.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'set-up: %-9s %s\n' "$1" "$2" >&2; }

# command or folder that shows that a package is there, and the package
cluster_packages=(slurmctld:slurmctld slurmd:slurmd sbatch:slurm-client munged:munge sshd:openssh-server ssh:openssh-client
    libnss_wrapper.so:libnss-wrapper)
accounting_packages=(slurmdbd:slurmdbd mariadbd:mariadb-server)
browser_packages=(chromium:chromium chromedriver:chromium-driver)
database_packages=(postgres:postgresql-15)
load_packages=(wrk:wrk)
container_packages=(dockerd:docker.io debootstrap:debootstrap)
keycloak_packages=(java:default-jre-headless mvn:maven)

# runs on Debian's Java 17
keycloak_version=26.3.5
keycloak_sha256=95756bdfd7540fafaf28874a8eb8d0d4c55977344a3b7821e9bd3a22bfb2b6a6

have() {
    case $1 in
        postgres) compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || [ -x "$(command -v initdb)" ] ;;
        *.so) compgen -G "/usr/lib/*/$1" >/dev/null || compgen -G "/usr/lib*/$1" >/dev/null ;;
        *) [ -x "$(PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin" command -v "$1")" ] ;;
    esac
}

# lacking COMMAND:PACKAGE... prints the packages whose command is absent
lacking() {
    local pair
    for pair in "$@"; do
        have "${pair%%:*}" || echo "${pair##*:}"
    done
}

install_packages() { # step package...
    local step=$1 guard="" package
    shift
    if ! have apt-get; then
        say "$step" "missing: $* (no apt-get here: install them by this system's own means)"
        return 1
    fi
    if [ "$(id -u)" -ne 0 ]; then
        say "$step" "missing: $* (only root can install them: apt-get install --no-install-recommends $*)"
        return 1
    fi
    say "$step" "installing $*"
    # the sandbox runs its own daemons; the system's must neither start now nor at the next boot
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        guard=/usr/sbin/policy-rc.d
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
        printf '#!/bin/sh\nexit 101\n' >"$guard"
        chmod 755 "$guard"
    fi
    apt-get -qq -o DPkg::Lock::Timeout=300 update >&2
    DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 \
        install --no-install-recommends "$@" >&2
    if [ -n "$guard" ]; then
        rm -f "$guard"
        trap - EXIT
    fi
    if [ -d /run/systemd/system ]; then
        for package in "$@"; do
            case $package in
                openssh-server) systemctl disable --quiet ssh.service ssh.socket 2>/dev/null || true ;;
                slurmctld | slurmd | slurmdbd | munge) systemctl disable --quiet "$package.service" 2>/dev/null || true ;;
                docker.io) systemctl disable --quiet docker.service docker.socket containerd.service 2>/dev/null || true ;;
                postgresql-15) systemctl disable --quiet postgresql.service 2>/dev/null || true ;;
                mariadb-server) systemctl disable --quiet mariadb.service 2>/dev/null || true ;;
            esac
        done
    fi
}

packages_step() { # step consequence COMMAND:PACKAGE...
    local step=$1 consequence=$2 missing
    shift 2
    mapfile -t missing < <(lacking "$@")
    if [ ${#missing[@]} -eq 0 ]; then
        say "$step" "all there"
    elif ! install_packages "$step" "${missing[@]}"; then
        say "$step" "$consequence"
    fi
}

need_venv_module() {
    if ! have python3; then
        install_packages python python3 python3-venv
    elif ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
        install_packages python python3-venv
    fi
}

# hash_of FILE...: of their contents, of the interpreter and of this folder (scripts in an environment name it)
hash_of() {
    { cat "$@"; python3 -VV; pwd; } | sha256sum | cut -d' ' -f1
}

stamped() { # name hash
    [ "$(cat ".stamps/$1" 2>/dev/null)" = "$2" ]
}

venv_works() {
    .venv/bin/python -c 'import bbpwf, sandbox, service, tasks, luigi, paramiko, sqlalchemy, fastapi, flask, pytest' 2>/dev/null &&
        [ -x .venv/bin/bbpwf ]
}

venv_step() {
    need_venv_module
    local hash
    hash=$(hash_of constraints.txt setup.cfg pyproject.toml)
    if stamped venv "$hash" && venv_works; then
        say venv "up to date"
        return
    fi
    say venv "installing bbpwf and what it needs into .venv (about a minute)"
    if ! .venv/bin/python -c 'import pip' 2>/dev/null; then
        python3 -m venv --clear .venv
    fi
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
        --editable '.[service,postgresql,gateway,sandbox,dev]'
    if ! venv_works; then
        say venv "does not work after installation:"
        .venv/bin/python -c 'import bbpwf, sandbox, service, tasks, luigi, paramiko, sqlalchemy, fastapi, flask, pytest'
        return 1
    fi
    echo "$hash" >.stamps/venv
}

software_works() {
    # starting NEURON and one of its own mechanisms: what the demo's simulations need
    .software/bin/python - >/dev/null 2>&1 <<'PY'
import importlib.util
from neuron import h
h.Section(name="soma").insert("hh")
missing = [name for name in ("h5py", "libsonata", "matplotlib", "numpy") if importlib.util.find_spec(name) is None]
raise SystemExit(missing or 0)
PY
}

software_step() {
    need_venv_module
    local hash
    hash=$(hash_of sandbox/software.txt)
    if stamped software "$hash" && software_works; then
        say software "up to date"
        return
    fi
    say software "installing NEURON, libsonata and others into .software (about half a minute)"
    python3 -m venv --clear .software
    .software/bin/python -m pip install --quiet --disable-pip-version-check --requirement sandbox/software.txt
    if ! software_works; then
        say software "NEURON does not start:"
        .software/bin/python -c 'from neuron import h; h.Section(name="soma").insert("hh")'
        return 1
    fi
    echo "$hash" >.stamps/software
}

peers_work() {
    .peers/bin/wes-client --version >/dev/null 2>&1 && compgen -G '.peers/lib/python*/site-packages/sapporo/*1.1.0.yml' >/dev/null
}

peers_step() {
    need_venv_module
    local hash
    hash=$(hash_of sandbox/peers.txt)
    if stamped peers "$hash" && peers_work; then
        say peers "up to date"
        return
    fi
    say peers "installing a public WES client into .peers (about ten seconds)"
    python3 -m venv --clear .peers
    .peers/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement sandbox/peers.txt
    peers_work || { say peers "the client does not start:"; .peers/bin/wes-client --version; return 1; }
    echo "$hash" >.stamps/peers
}

keycloak_works() {
    [ -s .keycloak/data/h2/keycloakdb.mv.db ] && [ -s .keycloak/admin-password ] &&
        [ -s .keycloak/lib/quarkus/quarkus-application.dat ] && [ -z "$(lacking "${keycloak_packages[@]}")" ]
}

keycloak_step() {
    local hash draft=.keycloak.new zip=keycloak-quarkus-dist-$keycloak_version.zip
    hash=$(printf '%s\n' "$keycloak_sha256" "$(declare -f make_keycloak)" | sha256sum | cut -d' ' -f1)
    if stamped keycloak "$hash" && keycloak_works; then
        say keycloak "up to date"
        return
    fi
    packages_step keycloak "without them the tests on a real Keycloak are left out" "${keycloak_packages[@]}" 9>&-
    [ -z "$(lacking "${keycloak_packages[@]}")" ] || return 0
    say keycloak "fetching Keycloak $keycloak_version and building it for here (about a minute)"
    rm -rf .keycloak "$draft"
    mkdir "$draft"
    if ! mvn -q -B org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy -DoutputDirectory="$PWD/$draft" \
        -Dartifact="org.keycloak:keycloak-quarkus-dist:$keycloak_version:zip" >&2; then
        say keycloak "it cannot be had now: the tests on a real Keycloak are left out"
        rm -rf "$draft"
        return 0
    fi
    echo "$keycloak_sha256  $draft/$zip" | sha256sum --quiet --check >&2
    python3 -m zipfile -e "$draft/$zip" "$draft"
    make_keycloak "$draft/keycloak-$keycloak_version"
    mv "$draft/keycloak-$keycloak_version" .keycloak
    rm -rf "$draft"
    echo "$hash" >.stamps/keycloak
}

# make_keycloak FOLDER: built for what is used here, with an empty database that each instance begins with
make_keycloak() {
    (
        cd "$1"
        umask 077
        python3 -c 'import secrets; print(secrets.token_urlsafe(24))' >admin-password
        bash bin/kc.sh build --db=dev-file --http-relative-path=/auth \
            --features-disabled=admin,account,kerberos,ciba,organization,impersonation
        KC_CACHE=local KC_PASSWORD=$(cat admin-password) bash bin/kc.sh bootstrap-admin user --optimized \
            --username admin --password:env KC_PASSWORD
    ) >"$1.log" 2>&1 || { cat "$1.log" >&2; return 1; }
}

marks_step() {
    local terms=()
    [ -z "$(lacking "${cluster_packages[@]}")" ] || terms+=("not slurm")
    [ -z "$(lacking "${accounting_packages[@]}")" ] || terms+=("not accounting")
    [ -z "$(lacking "${browser_packages[@]}")" ] || terms+=("not browser")
    [ -z "$(lacking "${database_packages[@]}")" ] || terms+=("not postgresql")
    keycloak_works || terms+=("not keycloak")
    # a daemon of one's own takes root, and a kernel that has what containers are made of
    [ "$(id -u)" -eq 0 ] && [ -z "$(lacking "${container_packages[@]}")" ] &&
        [ -d /sys/fs/cgroup ] || terms+=("not container")
    local expression="" term
    for term in "${terms[@]}"; do expression+="${expression:+ and }$term"; done
    echo "$expression"
}

[ $# -gt 0 ] || set -- packages venv software
mkdir -p .stamps
if [ "$1" != marks ]; then
    # two set-ups at once in one folder would tread on each other
    exec 9>.stamps/lock
    flock -n 9 || { say wait "another set-up is at work in this folder"; flock -w 1800 9; }
fi
for step in "$@"; do
    case $step in
        packages)
            packages_step packages "without them the sandbox runs jobs as local processes instead of through Slurm" \
                "${cluster_packages[@]}" 9>&-
            ;;
        accounting)
            packages_step accounting "without them the tests on a Slurm with accounting are left out" \
                "${accounting_packages[@]}" 9>&-
            ;;
        database)
            packages_step database "without them the tests on PostgreSQL are left out" "${database_packages[@]}" 9>&-
            ;;
        load) packages_step load "without them the service cannot be measured" "${load_packages[@]}" 9>&- ;;
        container)
            packages_step container "without them no image is built and the tests that run containers are left out" \
                "${container_packages[@]}" 9>&-
            ;;
        browser) packages_step browser "without them the tests that drive a browser are left out" "${browser_packages[@]}" 9>&- ;;
        keycloak) keycloak_step ;;
        venv) venv_step ;;
        software) software_step ;;
        peers) peers_step ;;
        marks) marks_step ;;
        *) echo "$0: unknown step $step" >&2; exit 2 ;;
    esac
done

# Sourced by bin/try and bin/test, in the checkout's directory: the programs and the virtual environment
# that they need.

die() {
    printf '%s\n' "$@" >&2
    exit 69 # EX_UNAVAILABLE
}

# quietly COMMAND...: what the command said is shown if it fails.
quietly() {
    if ! said=$("$@" 2>&1 </dev/null); then
        printf '%s\n' "$said" >&2
        return 1
    fi
}

# A Python of 3.11 or later; the system's own where it will do, because other uids can run that too.
find_python() {
    for python in ${PYTHON:-/usr/bin/python3 python3 python3.14 python3.13 python3.12 python3.11}; do
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && return
    done
    return 1
}

# need PROGRAM PACKAGE: remember the package where the program is missing.
need() {
    PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null || missing="$missing $2"
}

# packages EXTRA...: see to it that what the lab needs is there, and the packages EXTRA (PROGRAM:PACKAGE).
packages() {
    missing=
    need /usr/bin/python3 python3
    need sshd openssh-server
    need ssh openssh-client
    need setpriv util-linux
    if ! [ -z "$(LD_PRELOAD=libnss_wrapper.so /bin/true 2>&1)" ]; then
        missing="$missing libnss-wrapper"
    fi
    if ! { find_python && "$python" -c 'import venv, ensurepip' 2>/dev/null; }; then
        missing="$missing python3-venv"
    fi
    for extra; do
        need "${extra%%:*}" "${extra#*:}"
    done
    [ -n "$missing" ] || return 0
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        die "missing here:$missing" "as root on Debian or Ubuntu: apt-get install --no-install-recommends$missing"
    fi
    echo "installing$missing"
    install_packages $missing || die "cannot install$missing"
    find_python || die "no Python of 3.11 or later; PYTHON=/path/to/python3 names one"
}

# welcome EXTRA...: install these too where that is easy; tests skip what they miss.
welcome() {
    missing=
    for extra; do
        need "${extra%%:*}" "${extra#*:}"
    done
    [ -n "$missing" ] || return 0
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && echo "installing$missing" && install_packages $missing; then
        return
    fi
    echo "without$missing: their tests are skipped"
}

install_packages() {
    # The lab starts an sshd of its own; the package's is not to run, now or at the next start.
    policy=/usr/sbin/policy-rc.d
    if [ -e $policy ]; then
        policy=
    else
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod 755 $policy
        trap 'rm -f $policy' EXIT
        trap 'exit 130' INT
        trap 'exit 143' TERM
    fi
    installed=yes
    apt_install "$@" 2>/dev/null || { quietly apt-get -qq update; apt_install "$@"; } || installed=
    case " $* " in
    *" openssh-server "*)
        if command -v systemctl >/dev/null; then
            systemctl --quiet disable ssh.service ssh.socket 2>/dev/null || :
        fi
        ;;
    esac
    if [ -n "$policy" ]; then
        rm -f $policy
        trap - EXIT INT TERM
    fi
    [ -n "$installed" ]
}

apt_install() {
    DEBIAN_FRONTEND=noninteractive quietly \
        apt-get -qq -y -o Acquire::Retries=3 --no-install-recommends install "$@"
}

# virtual_environment [EXTRA]: .venv with sshrec in it, editable, and the dependencies of EXTRA (dev).
# The stamp in it tells for which pyproject.toml and which extras that was done.
virtual_environment() {
    sum=$(cksum <pyproject.toml)
    for done_before in "$sum dev" "$sum ${1-}"; do
        if [ "$(cat .venv/sshrec-stamp 2>/dev/null)" = "$done_before" ] && usable; then
            return
        fi
    done
    echo "installing sshrec into .venv"
    usable || "$python" -m venv --clear .venv || die "cannot make .venv with $python"
    rm -f .venv/sshrec-stamp
    # The second attempt is for registries that answer late: what was downloaded is kept.
    pip_install "${1-}" 2>/dev/null || pip_install "${1-}" || die "cannot install sshrec into .venv"
    echo "$sum ${1-}" >.venv/sshrec-stamp
}

pip_install() {
    quietly .venv/bin/python -m pip --quiet --disable-pip-version-check --retries 5 --timeout 60 \
        install --editable ".${1:+[$1]}"
}

# Whether .venv works and was made here: one that was moved or copied has scripts that run another.
usable() {
    grep -qF "$PWD/.venv/bin" .venv/bin/pip 2>/dev/null && .venv/bin/python -c '' 2>/dev/null
}

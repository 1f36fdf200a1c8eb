# What both scripts begin with. They run as root on a target, by any POSIX shell.
# Arguments: SSH_CONNECTION, the login's name, the mark of our lines, the path of sshd_config, and each script's own.
# The dialogue is on descriptor 3, so that no command reads from it.
set -u
umask 077
PATH=/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin
LC_ALL=C
export PATH LC_ALL
connection=$1 login=$2 mark=$3 config=$4
exec 3<&0 </dev/null
trap '' PIPE
say() { printf '%s %s\n' "$mark" "$*"; }
pack() { head -c 262144 | base64 | tr -d '\n'; }
sshd=$(command -v sshd) || sshd=/usr/sbin/sshd
files_of() { printf '%s\n' "$2" | sed -n "s/^$1 //p" | grep -v '^none$'; }
trusted_by() { files_of trustedusercakeys "$1" | while IFS= read -r file; do cat "$file"; done | pack; }
# Whatever the login's start-up files printed, this begins a line.
printf '\n'
say hello

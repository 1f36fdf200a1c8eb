# Behind common.sh: puts files in place, has sshd judge and read them, and takes all back unless told to keep them.
# Arguments five to seven: seconds until all is taken back, the pid file, addresses with commas between them.
# The name of what was there before is kept by a hard link, so what comes back is the very same inode.
limit=$5 pidfile=$6 addresses=$7
work=${config%/*}/.$mark
count=0 made= reader= watch= reloaded= committed= broken= stale= staged= before= unit= pid=

fail() {
    say failed "$1" "$(printf '%s\n' "$2" | pack)"
    exit 1
}

reload() {
    reloaded=none
    [ -n "$unit$pid" ] || return 0
    if [ -r "$pidfile" ]; then
        # sshd writes its pid file anew once it listens. Held open, the old one keeps its inode to itself.
        { before=$(ls -i "$pidfile") && signal && new_pid_file; } 4<"$pidfile"
    elif [ -n "$before" ]; then
        signal && new_pid_file
    else
        signal
    fi
}

signal() {
    if [ -n "$unit" ]; then
        reloaded=$unit
        systemctl reload-or-restart "$unit"
    else
        reloaded=SIGHUP
        kill -HUP "$pid"
    fi
}

new_pid_file() {
    turns=100
    while now=$(ls -i "$pidfile"); [ -z "$now" ] || [ "$now" = "$before" ] || [ ! -s "$pidfile" ]; do
        [ "$turns" -gt 0 ] || return 1
        turns=$((turns - 1))
        sleep 0.1 2>/dev/null || sleep 1
    done
}

# The daemon that reads this configuration; none where sshd is started for each connection.
find_daemon() {
    if [ "$config" = /etc/ssh/sshd_config ] && command -v systemctl >/dev/null; then
        for name in ssh.service sshd.service; do
            systemctl is-active --quiet "$name" || continue
            main=$(systemctl show -p MainPID --value "$name")
            [ "${main:-0}" -gt 0 ] || continue # a systemctl without a systemd says yes to everything
            case $(tr '\0' ' ' <"/proc/$main/cmdline") in
            *' -f'*) ;;
            *) unit=$name ;;
            esac
            break
        done
    fi
    [ -z "$unit" ] && [ -r "$pidfile" ] && pid=$(head -n 1 "$pidfile")
    case $pid in
    '' | *[!0-9]*) pid= ;;
    *)
        case $(cat "/proc/$pid/comm" 2>/dev/null || ps -p "$pid" -o comm=) in
        *sshd*) ;;
        *) pid= ;;
        esac
        ;;
    esac
}

undo() {
    while [ "$count" -gt 0 ]; do
        path=$(cat "$work/$count.path")
        if [ -e "$work/$count.old" ] || [ -L "$work/$count.old" ]; then
            mv -f "$work/$count.old" "$path" || broken=1
        else
            rm -f "$path" || broken=1
        fi
        count=$((count - 1))
    done
}

leave() {
    trap '' HUP INT TERM
    trap - EXIT
    [ -z "$watch" ] || kill "$watch"
    [ -z "$reader" ] || kill "$reader"
    [ -z "$staged" ] || rm -f "$staged"
    if [ -z "$committed" ]; then
        undo
        [ -z "$reloaded" ] || reload || stale=1
    fi
    if [ -n "$broken" ]; then
        say broken "$(printf %s "$work" | pack)"
    else
        [ -z "$made" ] || rm -rf "$work"
        if [ -n "$committed" ]; then say done; elif [ -n "$stale" ]; then say stale; else say restored; fi
    fi
} 2>/dev/null

put() {
    [ -d "${1%/*}" ] || fail write "$1: there is no such directory"
    [ ! -d "$1" ] || fail write "$1: it is a directory"
    staged=$1.$mark
    said=$({ printf '%s\n' "$2" | base64 -d >"$staged" && chmod 644 "$staged"; } 2>&1) || fail write "$1: $said"
    sync "$staged" 2>/dev/null || sync
    found=$(find "$1" -prune -type f -perm 644 -user "$(id -u)" 2>/dev/null)
    if [ -n "$found" ] && cmp -s "$staged" "$1"; then
        rm -f "$staged"
        say same "$1"
        return
    fi
    next=$((count + 1))
    if [ -e "$1" ] || [ -L "$1" ]; then
        ln -P "$1" "$work/$next.old" 2>/dev/null ||
            said=$(cp -pP "$1" "$work/$next.old" 2>&1) || fail write "$1: $said"
    fi
    said=$({ printf '%s\n' "$1" >"$work/$next.path"; } 2>&1) || fail write "$1: $said"
    count=$next
    said=$(mv -f "$staged" "$1" 2>&1) || fail write "$1: $said"
    say changed "$1"
}

# A wait ends when a signal comes, whatever the shell; a read may not.
expect() {
    (IFS= read -r word && [ "$word" = "$1" ]) <&3 >/dev/null 2>&1 &
    reader=$!
    wait "$reader" || exit 1
    reader=
}

trap 'exit 1' HUP INT TERM
trap leave EXIT
(
    trap 'kill $!; exit' TERM
    sleep "$limit" &
    wait $!
    kill -TERM $$
) 3<&- </dev/null >/dev/null 2>&1 &
watch=$!

said=$(mkdir -m 700 "$work" 2>&1) || fail write "$said"
made=1
word=
while IFS=' ' read -r word path data <&3 && [ "$word" = put ]; do put "$path" "$data"; done
[ "$word" = check ] || exit 1

said=$("$sshd" -t -f "$config" 2>&1) || fail sshd-t "$said"
set -- $connection
local=
[ $# -ne 4 ] || local=,laddr=$3,lport=$4
IFS=,
set -- $addresses
unset IFS
for address; do
    settings=$("$sshd" -T -f "$config" -C "user=$login,host=$address,addr=$address$local" 2>&1) ||
        fail sshd-t "$settings"
    shown=$(printf '%s\n' "$settings" | grep -E '^(trustedusercakeys|revokedkeys|hostcertificate) ' | pack)
    say view "$address" "$shown" "$(trusted_by "$settings" 2>/dev/null)"
done
say checked

expect reload
find_daemon 2>/dev/null
reload 2>/dev/null || fail reload ''
say reloaded "$reloaded"

expect commit
trap '' HUP INT TERM
committed=1

#!/bin/sh
# Checks sshrec's audit log without sshrec: its chain with sha256sum, its signatures with ssh-keygen.
#
#   verify-log.sh DIRECTORY ALLOWED_SIGNERS [IDENTITY]
#
# ALLOWED_SIGNERS is the auditor's own copy, kept where nobody on the bastion can change it. The status is 0 when
# all is good, 1 when it is not, 3 when it is and has gaps (a minute without a signature, a clock that was set back),
# 64 for wrong usage. It starts two programs a line, so it takes its time.
set -u
LC_ALL=C
export LC_ALL
[ $# -ge 2 ] || { echo "usage: $0 DIRECTORY ALLOWED_SIGNERS [IDENTITY]" >&2; exit 64; }
directory=$1 signers=$2 identity=${3-$(sed -n '/^[^#]/{s/ .*//p;q;}' "$2")}
work=$(mktemp -d) || exit 64
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

bad() { echo "BAD: line $n of $file: $*"; exit 1; }
field() { printf '%s\n' "$line" | sed -n "s/.*\"$1\":\"\\([^\"]*\\)\".*/\\1/p"; }
number() { printf '%s\n' "$line" | sed -n 's/.*"n":\([0-9]*\),.*/\1/p'; }
sha() { sha256sum | cut -d' ' -f1; }
gap() { echo "GAP: $*"; gaps=$((gaps + 1)); }
seconds() { date -u -d "$1" +%s 2>/dev/null || echo 0; }

prev=$(printf %s sshrec-audit-v1 | sha)
n=0 signed=0 covered=0 gaps=0 checkpoint= torn= last= open=
for file in "$directory"/????-??-??.jsonl; do
    [ -f "$file" ] || { echo "BAD: no log in $directory"; exit 1; }
    while IFS= read -r line; do
        if [ "$(number)" != "$n" ] || [ "$(field prev)" != "$prev" ]; then
            # What a crash tore is followed by a line that names its length and hash.
            torn="$torn$line
"
            continue
        fi
        if [ -n "$torn" ]; then
            [ "$(field event)" = log.repair ] || bad "what is before it does not belong there"
            whole=$(printf %s "$torn" | sha) bare=$(printf %s "${torn%?}" | sha)
            case $(field torn_sha256) in "$whole" | "$bare") ;; *) bad "it repairs something else" ;; esac
            torn=
        fi
        time=${line##*\"time\":\"} time=${time%%\"*}
        case $time in ????-??-??T??:??:??.???Z) ;; *) bad "it has no time" ;; esac
        if [ -n "$last" ] && [ "$time" \< "$last" ] && [ $(($(seconds "$last") - $(seconds "$time"))) -gt 1 ]; then
            gap "line $n: the clock went back from $last to $time"
        fi
        last=$time
        : "${open:=$n $time}" # the first line that no signature covers yet
        if [ "$(field event)" = checkpoint.signature ]; then
            [ -n "$checkpoint" ] || bad "it signs no checkpoint"
            printf -- '-----BEGIN SSH SIGNATURE-----\n%s\n-----END SSH SIGNATURE-----\n' "$(field signature)" >"$work/sig"
            when=$(printf '%s\n' "$checkpoint" | sed -n 's/.*"time":"\([^".]*\)[^"]*".*/\1/p' | tr -d 'T:-')
            printf %s "$checkpoint" | ssh-keygen -q -Y verify -f "$signers" -I "$identity" -n sshrec-checkpoint-v1 \
                -s "$work/sig" -O verify-time="${when}Z" >/dev/null 2>&1 || bad "its signature is not $identity's"
            signed=$((signed + 1)) covered=$((n + 1))
            at=${checkpoint##*\"time\":\"} at=${at%%\"*}
            waited=$(($(seconds "$at") - $(seconds "${open#* }")))
            [ "$waited" -le 60 ] || gap "line ${open%% *} waited $waited s for a signature: ${open#* } to $at"
            open=
        fi
        checkpoint=
        [ "$(field event)" != checkpoint ] || checkpoint=$line
        prev=$(printf '%s\n' "$line" | sha)
        n=$((n + 1))
    done <"$file"
done
[ -z "$torn" ] || bad "it does not continue the one before, and nothing repairs that"
if [ -n "$open" ] && [ $(($(seconds "$last") - $(seconds "${open#* }"))) -gt 60 ]; then
    gap "from line ${open%% *} on nothing is signed: ${open#* } to $last"
fi
echo "GOOD: $n lines, $covered of them under $signed signatures of $identity"
[ "$gaps" = 0 ] || exit 3

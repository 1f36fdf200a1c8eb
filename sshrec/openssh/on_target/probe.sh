# Behind common.sh: tells what the target's sshd is like, and changes nothing.
# Argument five: the name that our file would have among those that sshd_config includes.
drop_in=$5
say connection "$(printf %s "$connection" | pack)"
say uid "$(id -u | pack)"
say owner "$(ls -Lldn "$config" 2>/dev/null | awk '{ print $3 }' | pack)"
say version "$("$sshd" -V 2>&1 | pack)"
say config "$(pack 2>/dev/null <"$config")"
said=$("$sshd" -t -f "$config" 2>&1) || say broken "$(printf '%s\n' "$said" | pack)"
settings=$("$sshd" -T -f "$config" 2>/dev/null)
say settings "$(printf '%s\n' "$settings" | pack)"
say trusted "$(trusted_by "$settings" 2>/dev/null)"
files_of hostkey "$settings" | while IFS= read -r key; do
    line=$(ssh-keygen -y -P '' -f "$key" 2>/dev/null || cat "${key%.pub}.pub" 2>/dev/null) &&
        say hostkey "$(printf %s "$key" | pack)" "$(printf '%s\n' "$line" | pack)"
done
# What Include names, as far as a shell can tell: is there a file that goes by the name of ours already?
sed -n 's/^[[:blank:]]*[Ii][Nn][Cc][Ll][Uu][Dd][Ee][[:blank:]=]*//p' "$config" | tr -d '"' | tr ' \t' '\n\n' |
    while IFS= read -r pattern; do
        case $pattern in
        /*) ;;
        *) pattern=/etc/ssh/$pattern ;;
        esac
        file=${pattern%/*}/$drop_in
        [ -e "$file" ] && say present "$(printf %s "$file" | pack)" "$(pack <"$file")"
    done
[ -s "${config%/*}/sshrec_krl" ] && say krl
say end

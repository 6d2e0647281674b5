# SPDX-License-Identifier: GPL-2.0-or-later
# Enters the Debian root. Runs as the first process of a mount and PID
# namespace of its own, so that nothing stays behind when it ends.
# Arguments: ROOT CWD BINDS... -- CMD...
set -e
root=$1
cwd=$2
shift 2
mount --make-rprivate /
while [ "$1" != -- ]; do
    mkdir -p "$root$1"
    mount --rbind "$1" "$root$1"
    shift
done
shift
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount --rbind /sys "$root/sys"
mount -o remount,bind,ro "$root/sys" 2>/dev/null || true
# Not exec: the first process of a PID namespace is deaf to Ctrl-C.
chroot "$root" /bin/sh -c 'cd "$0" && exec "$@"' "$cwd" "$@"
exit $?

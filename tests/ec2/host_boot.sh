#!/bin/sh
# The first process of a host, in namespaces of its own (mount, pid, uts, ipc, cgroup, network): puts the
# host's file system together and becomes systemd. $HOST is the folder of its disk; $SHOWN are folders of
# this machine that it sees where this machine has them, read-only.
set -eu
umask 022
disk=$HOST/disk
mount --make-rprivate /
mount --bind "$disk" "$disk"
for name in etc usr var opt; do  # this machine's, and what the host writes to them stays in its own folder
    mkdir -p "$HOST/scratch/$name"
    mount -t overlay overlay "$disk/$name" \
        -o "lowerdir=/$name,upperdir=$HOST/written/$name,workdir=$HOST/scratch/$name"
done
for path in $SHOWN; do
    mount --bind "$path" "$disk$path"
    mount -o remount,bind,ro "$disk$path"
done

mount -t tmpfs -o mode=755,size=4m tmpfs "$disk/dev"
for name in null zero full random urandom tty; do
    touch "$disk/dev/$name"
    mount --bind "/dev/$name" "$disk/dev/$name"
done
mkdir "$disk/dev/pts" "$disk/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$disk/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$disk/dev/shm"
ln -s pts/ptmx "$disk/dev/ptmx"
ln -s /proc/self/fd "$disk/dev/fd"
ln -s fd/0 "$disk/dev/stdin"
ln -s fd/1 "$disk/dev/stdout"
ln -s fd/2 "$disk/dev/stderr"

mount -t tmpfs -o mode=755 tmpfs "$disk/run"
mkdir -p "$disk/run/host" "$disk/run/lock"
echo ec2rig > "$disk/run/host/container-manager"  # systemd must know that this is no machine of its own
mount -t proc proc "$disk/proc"
mount --bind "$disk/proc/sys" "$disk/proc/sys"
mount -o remount,bind,ro "$disk/proc/sys"
mount --bind /sys "$disk/sys"
mount -o remount,bind,ro "$disk/sys"
mount -t cgroup2 cgroup2 "$disk/sys/fs/cgroup"

hostname "$NAME"
cd "$disk"
pivot_root . .machine
cd /
umount -l /.machine
exec env -i container=ec2rig PATH="$HOST_PATH" LANG=C.UTF-8 /lib/systemd/systemd --log-target=console --show-status=false

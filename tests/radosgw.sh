#!/bin/bash
# A second, independent S3 server for the store tests: Ceph's radosgw over one monitor and one OSD in memory,
# from Debian 12 packages that are unpacked, not installed. Needs apt, dpkg-deb and Debian's python3.
#
#     tests/radosgw.sh DIR          fetches and unpacks into DIR once, boots, prints the URL, runs until Ctrl-C
#     JOBSVC_TEST_RADOSGW_URL=URL pytest -m radosgw tests/unit
#
# About 230 MB of disk and as much memory; up in about 20 s.
set -euo pipefail

dir=$(realpath -m "${1:?usage: $0 DIR}")
tree=$dir/tree run=$dir/run conf=$dir/run/ceph.conf keyring=$dir/run/keyring
read -r monitor_v2 monitor_v1 gateway < <(/usr/bin/python3 - <<'PYTHON'
import socket
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
print(*(s.getsockname()[1] for s in sockets))
PYTHON
)
url=http://127.0.0.1:$gateway
pids=()

say() { echo "$*" >&2; }

finish() {
    for pid in "${pids[@]}"; do kill -9 "$pid" 2>/dev/null || true; done # nothing of theirs is kept
    wait
    rm -rf "$run"
}

unpack() {
    [ -e "$tree/.complete" ] && return
    say "fetching packages into $dir"
    mkdir -p "$dir/debs/partial" "$tree"
    apt-get install -y --download-only --no-install-recommends -o "Dir::Cache::archives=$dir/debs" \
        radosgw ceph-mon ceph-osd ceph-base ceph-common >&2
    for package in "$dir"/debs/*.deb; do dpkg-deb -x "$package" "$tree"; done
    touch "$tree/.complete"
}

write_conf() {
    local libraries=$tree/usr/lib/x86_64-linux-gnu
    cat >"$conf" <<CONF
[global]
fsid = 5f0c2f43-7ac1-4f0e-9a6c-0d3c1b8a6e21
mon initial members = a
mon host = [v2:127.0.0.1:$monitor_v2,v1:127.0.0.1:$monitor_v1]
public network = 127.0.0.0/8
ms bind ipv6 = false
mon data = $run/mon
mon data avail crit = 1
mon data avail warn = 2
mon allow pool size one = true
mon max pg per osd = 2000
mon cluster log file = /dev/null
osd data = $run/osd
osd objectstore = memstore
memstore device bytes = 1073741824
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd class load list = *
osd class default list = *
osd class dir = $libraries/rados-classes
erasure code dir = $libraries/ceph/erasure-code
plugin dir = $libraries/ceph
keyring = $keyring
log file = $run/\$name.log
admin socket = $run/\$name.asok
run dir = $run
[client.rgw.a]
rgw data = $run/rgw
rgw frontends = beast endpoint=127.0.0.1:$gateway
CONF
}

make_keys() {
    local tool=$tree/usr/bin/ceph-authtool
    "$tool" --create-keyring "$keyring" --gen-key -n mon. --cap mon 'allow *'
    "$tool" "$keyring" --gen-key -n client.admin --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *'
    "$tool" "$keyring" --gen-key -n client.rgw.a --cap mon 'allow *' --cap osd 'allow *'
    "$tool" "$keyring" --gen-key -n osd.0 --cap mon 'allow profile osd' --cap osd 'allow *'
}

start() { # in the foreground of its own (-f), so that we know its pid
    "$tree/usr/bin/$1" -c "$conf" -f "${@:2}" >>"$run/output" 2>&1 &
    pids+=($!)
}

ceph() { /usr/bin/python3 "$tree/usr/bin/ceph" -c "$conf" --connect-timeout 10 "$@"; }

until_it_works() { # at most 60 s
    for _ in $(seq 120); do
        if "$@" >>"$run/output" 2>&1; then return; fi
        sleep 0.5
    done
    say "gave up on: $*"
    tail -20 "$run/output" >&2
    exit 1
}

unpack
rm -rf "$run"
mkdir -p "$run/mon" "$run/osd" "$run/rgw"
trap finish EXIT
trap 'exit 0' INT TERM
libs=$tree/usr/lib/x86_64-linux-gnu
export LD_LIBRARY_PATH=$libs:$libs/ceph:$tree/usr/lib/ceph:$tree/lib/x86_64-linux-gnu
export PYTHONPATH=$tree/usr/lib/python3/dist-packages
write_conf
make_keys >>"$run/output"

say "monitor"
address="[v2:127.0.0.1:$monitor_v2,v1:127.0.0.1:$monitor_v1]"
"$tree/usr/bin/ceph-mon" -c "$conf" --mkfs -i a --keyring "$keyring" --public-addrv "$address" >>"$run/output" 2>&1
start ceph-mon -i a --public-addrv "$address"
until_it_works ceph auth import -i "$keyring"

say "object storage in memory"
id=$(cat /proc/sys/kernel/random/uuid)
ceph osd new "$id" >>"$run/output" 2>&1
ceph osd crush add osd.0 1.0 host=h root=default >>"$run/output" 2>&1
"$tree/usr/bin/ceph-osd" -c "$conf" -i 0 --mkfs --osd-uuid "$id" >>"$run/output" 2>&1
start ceph-osd -i 0

say "gateway"
until_it_works timeout 60 "$tree/usr/bin/radosgw-admin" -c "$conf" user create \
    --uid=test --display-name=test --access-key=test --secret-key=testtest
start radosgw -n client.rgw.a
until_it_works curl -s -m 2 "$url/"

echo "JOBSVC_TEST_RADOSGW_URL=$url"
wait

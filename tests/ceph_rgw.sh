#!/bin/bash
# A real S3 server for the tests: Ceph's radosgw over one monitor and one OSD that keeps everything in memory.
#
#   ceph_rgw.sh start DATA [S3_PORT] [MON_PORT]    prints the endpoint; the keys are testkey and testsecret
#   ceph_rgw.sh stop DATA                          ends the daemons of DATA and waits until they are gone
#
# Nothing is installed and root is not needed: Debian's packages are fetched once, unpacked with dpkg -x below CEPH_CACHE
# (default ~/.cache/posepipe/ceph) and run from there. Exit status 77: the packages cannot be had on this machine.
set -euo pipefail

usage="usage: ceph_rgw.sh start DATA [S3_PORT] [MON_PORT] | stop DATA"
action=${1:?$usage}
data=$(realpath -m "${2:?$usage}")
s3_port=${3:-7480}
mon_port=${4:-3300}
cache=${CEPH_CACHE:-$HOME/.cache/posepipe/ceph}
root=$cache/root
lib=$root/usr/lib/$(uname -m)-linux-gnu

say() { echo "ceph_rgw.sh: $*" >&2; }

stop() {
    local file files=()
    for file in "$data"/{rgw,osd,mon}.pid; do
        [ -s "$file" ] && kill "$(cat "$file")" 2>/dev/null && files+=("$file")
    done
    for file in ${files+"${files[@]}"}; do
        # A daemon that does not end within 10 s is killed: what it holds is in memory only.
        for _ in $(seq 100); do
            kill -0 "$(cat "$file" 2>/dev/null || echo none)" 2>/dev/null || continue 2
            sleep 0.1
        done
        kill -KILL "$(cat "$file")" 2>/dev/null || true
    done
}

unpack() {
    [ -e "$root" ] && return
    local tool apt package
    for tool in apt-get dpkg; do
        command -v "$tool" >/dev/null || { say "no $tool on this machine"; exit 77; }
    done
    mkdir -p "$cache"
    # Its own lists, so that neither root nor an up-to-date system is needed.
    apt=$(mktemp -d "$cache/fetch.XXXXXX")
    mkdir -p "$apt/lists/partial" "$apt/archives/partial" "$apt/debs" "$apt/root"
    apt_get() { apt-get -qq -o "Dir::State::Lists=$apt/lists" -o "Dir::Cache=$apt" -o APT::Sandbox::User= "$@"; }
    if ! {
        cd "$apt/debs" && apt_get update &&
            # Only what the system lacks, but these five whether it has them or not.
            apt_get install --simulate --no-install-recommends radosgw ceph-mon ceph-osd | awk '$1 == "Inst" {print $2}' >../names &&
            printf '%s\n' radosgw ceph-mon ceph-osd ceph-base ceph-common >>../names &&
            apt_get download $(sort -u ../names)
    } >"$apt/log" 2>&1; then
        say "apt-get cannot fetch radosgw, ceph-mon and ceph-osd: $(tail -n 3 "$apt/log" | tr '\n' ' ')"
        rm -rf "$apt"
        exit 77
    fi
    cd /
    for package in "$apt"/debs/*.deb; do dpkg -x "$package" "$apt/root"; done
    mv "$apt/root" "$root"
    rm -rf "$apt"
}

configure() {
    rm -rf "$data"
    mkdir -p "$data/store-mon" "$data/store-osd" "$data/store-rgw" "$data/log"
    cat >"$data/ceph.conf" <<CONF
[global]
fsid = $(cat /proc/sys/kernel/random/uuid)
mon initial members = a
mon host = [v2:127.0.0.1:$mon_port]
ms bind msgr1 = false
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
keyring = $data/keyring
plugin dir = $lib/ceph
erasure code dir = $lib/ceph/erasure-code
osd class dir = $lib/rados-classes
osd class load list = *
osd class default list = *
# One copy, few placement groups: this holds test data and has to start soon.
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon max pg per osd = 1000
# A full disk is no concern of a store in memory.
mon data avail warn = 1
mon data avail crit = 0
admin socket =
run dir = $data
log file = $data/log/\$name.log
mon cluster log file = $data/log/cluster.log
[mon.a]
mon data = $data/store-mon
pid file = $data/mon.pid
[osd.0]
osd data = $data/store-osd
public addr = 127.0.0.1
cluster addr = 127.0.0.1
osd objectstore = memstore
memstore device bytes = 8589934592
pid file = $data/osd.pid
[client.rgw.a]
rgw data = $data/store-rgw
rgw frontends = beast endpoint=127.0.0.1:$s3_port
rgw thread pool size = 64
rgw dynamic resharding = false
pid file = $data/rgw.pid
CONF
}

# Their output would keep a caller's pipe open as long as the daemons live.
run() { "$@" >>"$data/log/start.log" 2>&1 </dev/null; }

start() {
    export LD_LIBRARY_PATH=$lib:$lib/ceph:$root/usr/lib:$root/usr/lib/ceph:$root/lib/$(uname -m)-linux-gnu
    export PYTHONPATH=$root/usr/lib/python3/dist-packages CEPH_CONF=$data/ceph.conf PATH=$root/usr/bin:$PATH
    configure
    auth() { run ceph-authtool "$data/keyring" --gen-key "$@"; }
    ceph() { run timeout 60 /usr/bin/python3 "$root/usr/bin/ceph" "$@"; }
    local osd
    osd=$(cat /proc/sys/kernel/random/uuid)
    auth --create-keyring -n mon. --cap mon 'allow *'
    auth -n client.admin --cap mon 'allow *' --cap osd 'allow *'
    auth -n osd.0 --cap mon 'allow profile osd' --cap osd 'allow *'
    auth -n client.rgw.a --cap mon 'allow rwx' --cap osd 'allow rwx'
    run ceph-mon -i a --mkfs --keyring "$data/keyring"
    run ceph-mon -i a
    ceph osd new "$osd"
    run ceph-osd -i 0 --mkfs --osd-uuid "$osd"
    ceph osd crush add osd.0 1.0 root=default host=localhost
    run ceph-osd -i 0
    run radosgw -n client.rgw.a
    # Waits for the pools, which radosgw makes before it answers.
    run timeout 120 radosgw-admin user create --uid=test --display-name=test --access-key=testkey --secret-key=testsecret
    for _ in $(seq 600); do
        (: >"/dev/tcp/127.0.0.1/$s3_port") 2>/dev/null && break
        kill -0 "$(cat "$data/rgw.pid")" 2>/dev/null || { say "radosgw ended"; return 1; }
        sleep 0.1
    done
    : >"/dev/tcp/127.0.0.1/$s3_port"
    echo "http://127.0.0.1:$s3_port"
}

finish() {
    [ $? -eq 0 ] && return
    say "no S3 server on port $s3_port; what the daemons say:"
    tail -qn 8 "$data"/log/*.log >&2
    stop
}

case $action in
stop) stop ;;
start)
    unpack
    trap finish EXIT
    start
    ;;
*)
    say "$usage"
    exit 2
    ;;
esac

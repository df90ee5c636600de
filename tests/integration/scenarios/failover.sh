#!/bin/sh
# Two daemons are one disk: $TARGET at $PORTAL is the source, $TARGET2 at $PORTAL2 its replica, a standby path. The source
# is killed under a writer (kill), the replica is made the disk (failover): dm-multipath goes on by the other path, and
# every file that was synced is there. The old source comes back (start), follows, and gets the disk back (failback).
# Needs a kernel with scsi_dh_alua.
. /scenario/lib.sh
need_host kill failover start failback
modprobe scsi_dh_alua || skip "this kernel has no ALUA device handler"
modprobe dm-multipath
modprobe dm-service-time
cat >/etc/multipath.conf <<'CONF'
defaults {
    force_sync          yes
    user_friendly_names no
    find_multipaths     no
    polling_interval    1
    max_polling_interval 2
    verbosity           2
}
devices {
    device {
        vendor               "TWINVOL"
        product              "VIRTUAL-DISK"
        path_grouping_policy group_by_prio
        prio                 alua
        hardware_handler     "1 alua"
        path_checker         tur
        failback             immediate
        no_path_retry        120
        fast_io_fail_tmo     5
    }
}
blacklist {
    devnode "^(loop|ram|zram|fd|sr|vd|dm-)"
}
CONF
log_in() {                                  # log_in TARGET PORTAL: sets DISK
    prepare_target "$1" "$2"
    set_node "$1" "$2" node.session.timeo.replacement_timeout 5
    must "login to $1" login "$1" "$2"
    must "its disk appears" wait_disk "$1" "$2" 0
}
id() { /usr/lib/udev/scsi_id -g -u -d "$1"; }
access() { cat "/sys/block/${1#/dev/}/device/access_state"; }

say "1. one disk, two daemons"
log_in "$TARGET" "$PORTAL"; A=/dev/$DISK
log_in "$TARGET2" "$PORTAL2"; B=/dev/$DISK
udevadm settle
wwid=$(id $A)
check "both have one identity" equal "$(id $B)" "$wwid"
check "the source is active" equal "$(access $A)" active/optimized
check "the replica is in standby" equal "$(access $B)" standby
multipathd >/run/multipathd.log 2>&1
mapped() { test -b "/dev/mapper/$wwid"; }
must "multipathd makes one device" until_true 40 mapped
state_of() { multipath -ll "$wwid" | sed -n "s/.* ${1#/dev/} .* \([a-z]* [a-z]*\) running\$/\1/p"; }
is() { [ "$($1 "$2")" = "$3" ]; }
check "the source's path is ready" until_true 30 is state_of $A "active ready"
check "the replica's is a ghost" until_true 30 is state_of $B "active ghost"
M=/dev/mapper/$wwid
mkdir -p /mnt/m
must "mkfs.ext4" mkfs.ext4 -q -F "$M"
must "mount" mount -t ext4 "$M" /mnt/m
must "files written" write_files /mnt/m 4 256 /tmp/ledger

say "2. the source is killed under a writer, the replica becomes the disk"
(i=0; while [ ! -e /tmp/enough ]; do
    i=$((i + 1)); mkdir -p /mnt/m/d$i
    write_files /mnt/m/d$i 1 32 /tmp/l$i || echo "write failed" >>/tmp/write-errors
    sed "s#  #  d$i/#" /tmp/l$i >>/tmp/ledger2
done) & writer=$!
entries() { wc -l </tmp/ledger2; }
more_than() { [ "$(entries)" -gt "$1" ]; }
goes_on() { until_true 90 more_than "$(($(entries) + 3))"; }
touch /tmp/ledger2
check "the writer is under way" goes_on
must "the source is killed" timed kill host kill
must "the replica becomes the disk" timed failover host failover
check "the writer goes on" timed goes_on_after goes_on
check "by the other path" until_true 30 is access $B active/optimized
result written_after_the_failover "$(entries)"
before=$(entries)

say "3. the old source comes back and gets the disk back"
must "it comes back" timed start host start
must "it gets the disk back" timed failback host failback
check "the writer goes on" goes_on
check "by the first path" until_true 60 is access $A active/optimized
check "the replica is a ghost again" until_true 60 is state_of $B "active ghost"
touch /tmp/enough
wait $writer
check "no write failed" test ! -e /tmp/write-errors
must "umount" umount /mnt/m
check "fsck finds nothing" fsck.ext4 -f -n "$M"
must "mount again" mount -t ext4 "$M" /mnt/m
check "all files are right" verify_files /mnt/m /tmp/ledger
check "those written meanwhile too" verify_files /mnt/m /tmp/ledger2
must "umount" umount /mnt/m
multipathd shutdown >/dev/null 2>&1 || kill "$(pidof multipathd)"
until_true 10 not pidof multipathd

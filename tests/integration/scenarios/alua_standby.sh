#!/bin/sh
# Asymmetric access: one disk by three targets. $TARGET offers it active/optimized, $TARGET2 in standby; $TARGET3 shows
# a replica of it as a standby path. dm-multipath has to see one disk with priorities, to follow when the states of the
# first two change places under a writer, and to take the replica as one more path that is never used.
# Needs --host-cmd swap= and back=, and a kernel with scsi_dh_alua.
. /scenario/lib.sh
need_host swap back
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
        no_path_retry        30
    }
}
blacklist {
    devnode "^(loop|ram|zram|fd|sr|vd|dm-)"
}
CONF
log_in() {                                  # log_in TARGET: sets DISK
    prepare_target "$1" "$PORTAL"
    must "login to $1" login "$1" "$PORTAL"
    must "its disk appears" wait_disk "$1" "$PORTAL" 0
}
access() { cat "/sys/block/${1#/dev/}/device/access_state"; }
handler() { cat "/sys/block/${1#/dev/}/device/dh_state"; }
id() { /usr/lib/udev/scsi_id -g -u -d "$1"; }
read_by() { dd if="$1" of=/dev/null bs=4096 count=1 iflag=direct status=none; }

say "1. the states, as the kernel reads them"
log_in "$TARGET"; A=/dev/$DISK
log_in "$TARGET2"; B=/dev/$DISK
udevadm settle
check "both have the ALUA handler" equal "$(handler $A) $(handler $B)" "alua alua"
check "the first is active/optimized" equal "$(access $A)" active/optimized
check "the second is in standby" equal "$(access $B)" standby
sg_rtpg --decode --extended "$B"
wwid=$(id $A)
check "both have one identity" equal "$(id $B)" "$wwid"
check "and one size" equal "$(blockdev --getsize64 $B)" "$(blockdev --getsize64 $A)"
check "a read by the first" read_by $A
check "no read by the standby path" not read_by $B

say "2. dm-multipath"
multipathd >/run/multipathd.log 2>&1
mapped() { test -b "/dev/mapper/$wwid"; }
must "multipathd makes one device" until_true 40 mapped
# "prio=50 ... active ready" belongs to the path whose line follows
state_of() { multipath -ll "$wwid" | sed -n "s/.* ${1#/dev/} .* \([a-z]* [a-z]*\) running\$/\1/p"; }
prio_of() { multipath -ll "$wwid" | awk -v path="${1#/dev/}" '/prio=/ { sub(/.*prio=/, ""); prio = $1 } $0 ~ " " path " " { print prio }'; }
is() { [ "$($1 "$2")" = "$3" ]; }
check "the first path is ready" until_true 30 is state_of $A "active ready"
check "the second is a ghost: there, and in standby" until_true 30 is state_of $B "active ghost"
multipath -ll
check "the first has the priority of an optimized path" equal "$(prio_of $A)" 50
check "the second that of a standby path" equal "$(prio_of $B)" 1
M=/dev/mapper/$wwid
mkdir -p /mnt/m
must "mkfs.ext4" mkfs.ext4 -q -F "$M"
must "mount" mount -t ext4 "$M" /mnt/m
must "files written" write_files /mnt/m 4 512 /tmp/ledger
written() { awk '{ print $7 }' "/sys/block/${1#/dev/}/stat"; }
check "nothing was written by the standby path" equal "$(written $B)" 0

say "3. the states change places under a writer"
(i=0; while [ ! -e /tmp/enough ]; do
    i=$((i + 1)); mkdir -p /mnt/m/d$i
    write_files /mnt/m/d$i 1 64 /tmp/l$i || echo "write failed" >>/tmp/write-errors
    sed "s#  #  d$i/#" /tmp/l$i >>/tmp/ledger2
done) & writer=$!
entries() { wc -l </tmp/ledger2; }
more_than() { [ "$(entries)" -gt "$1" ]; }
goes_on() { until_true 60 more_than "$(($(entries) + 3))"; }
touch /tmp/ledger2
check "the writer is under way" goes_on
must "the second becomes active, the first standby" timed swap host swap
check "the writer goes on" goes_on
check "the kernel knows the new states" until_true 30 is access $B active/optimized
check "and the first's" until_true 30 is access $A standby
check "the first path is the ghost now" until_true 30 is state_of $A "active ghost"
check "the second has the priority" until_true 30 is prio_of $B 50
before=$(written $A)
check "the writer goes on" goes_on
check "by the second path" test "$(written $B)" -gt 0
check "not by the first" equal "$(written $A)" "$before"
check "no read by the first" not read_by $A
result written_after_the_swap "$(entries)"
must "and back" host back
check "the writer goes on" goes_on
check "by the first" until_true 30 is prio_of $A 50
touch /tmp/enough
wait $writer
check "no write failed" test ! -e /tmp/write-errors
must "umount" umount /mnt/m
must "mount again" mount -t ext4 "$M" /mnt/m
check "all files are right" verify_files /mnt/m /tmp/ledger
check "those written during the changes too" verify_files /mnt/m /tmp/ledger2
must "umount" umount /mnt/m

say "4. explicit: SET TARGET PORT GROUPS by the host"
group_of() { sg_vpd --page=di "$1" | sed -n 's/.*Target port group: 0x//p'; }
stpg() { sg_stpg "$@" 2>&1; }               # it ends with 0 whatever the target says
check "the host makes the second active" stpg --optimized --tp="0x$(group_of $B)" "$A"
check "which it is" until_true 20 read_by $B
check "and standby again" stpg --standby --tp="0x$(group_of $B)" "$A"
check "which it is" not read_by $B

say "5. a replica as a standby path"
log_in "$TARGET3"; C=/dev/$DISK
check "it is in standby" equal "$(access $C)" standby
check "it has the source's identity" equal "$(id $C)" "$wwid"
check "and size" equal "$(blockdev --getsize64 $C)" "$(blockdev --getsize64 $A)"
check "it is one more path of the same disk, a ghost" until_true 30 is state_of $C "active ghost"
multipath -ll
check "it cannot be read" not read_by $C
stpg --optimized --tp="0x$(group_of $C)" "$A" >/tmp/stpg
check "nor be made active" contains /tmp/stpg 'Illegal request'
check "and is in standby" not read_by $C
must "mount" mount -t ext4 "$M" /mnt/m
check "the disk works on" verify_files /mnt/m /tmp/ledger
must "umount" umount /mnt/m
check "nothing was written by the replica's path" equal "$(written $C)" 0
multipathd shutdown >/dev/null 2>&1 || kill "$(pidof multipathd)"
until_true 10 not pidof multipathd
multipath -F
must "logout" iscsiadm -m node --logoutall=all

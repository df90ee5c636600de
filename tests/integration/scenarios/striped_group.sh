#!/bin/sh
# One ext4 striped over two LUNs; group snapshots taken under writes are each a file system that was never torn.
# Needs --host-cmd snapshot=COMMAND, run as "COMMAND N": it freezes both disks at one instant, exports the
# snapshots and prints SNAP_TARGET_1, SNAP_LUN_1, SNAP_TARGET_2, SNAP_LUN_2. Optional: ROUNDS (2).
#
# A snapshot of a mounted file system needs its journal replayed, as after a power loss. The LUNs are read-only, so the
# guest gives each an overlay in memory, stripes over the overlays and mounts that; then fsck may find nothing at all.
. /scenario/lib.sh
need_host snapshot
modprobe dm-snapshot

attach() {                                  # attach TARGET LUN: log in, wait for the disk; sets DEV
    prepare_target "$1" "$PORTAL"
    login "$1" "$PORTAL" >/dev/null && wait_disk "$1" "$PORTAL" "$2"
}
stripe() {                                  # stripe NAME FIRST SECOND: in pieces of 16 KiB, so that files span both
    dmsetup create "$1" --table "0 $((2 * $(blockdev --getsz "$2"))) striped 2 32 $2 0 $3 0" && udevadm settle
}

must "login to the first" attach "$TARGET" "$LUN"
first=$DEV
must "login to the second" attach "$TARGET2" "$LUN2"
second=$DEV
must "stripe over both" stripe whole "$first" "$second"
must "mkfs.ext4" mkfs.ext4 -q -F -J size=8 /dev/mapper/whole
mkdir -p /mnt/whole /mnt/snap
must "mount" mount -t ext4 /dev/mapper/whole /mnt/whole

# The writers stand still only while a snapshot is looked at: an emulated guest has one slow processor.
# Each writer makes one file after another, in directories that it makes and removes, and notes it once it is fsynced.
: >/tmp/ledger
writer() {                                  # writer NAME KIB
    local i=0
    while [ ! -e /tmp/enough ]; do
        [ ! -e /tmp/pause ] || { sleep 0.2; continue; }
        i=$((i + 1))
        mkdir -p "/mnt/whole/$1/$((i / 8))"
        dd if=/dev/urandom of="/tmp/piece-$1" bs=4K count=$(($2 / 4)) status=none
        if dd if="/tmp/piece-$1" of="/mnt/whole/$1/$((i / 8))/$i" bs=1M conv=fsync status=none; then
            echo "$(sha256sum <"/tmp/piece-$1" | cut -d' ' -f1)  $1/$((i / 8))/$i" >>/tmp/ledger
        else
            echo "write of $1 $i failed" | tee -a /tmp/write-errors
            return 1
        fi
        mkdir "/mnt/whole/passing-$1" && rmdir "/mnt/whole/passing-$1"
    done
}
entries() { wc -l </tmp/ledger; }
more_than() { [ "$(entries)" -gt "$1" ]; }
writer small 8 & writer large 256 &
must "the writers are under way" until_true 60 more_than 10

overlaid() {                                # overlaid NAME DEV: a writable view of a read-only disk
    truncate -s 24M "/tmp/$1"
    loop=$(losetup -f --show "/tmp/$1") &&
    dmsetup create "$1" --table "0 $(blockdev --getsz "$2") snapshot $2 $loop N 8" && udevadm settle
}
remove_overlaid() {
    loop=$(losetup -j "/tmp/$1" | cut -d: -f1)
    dmsetup remove --retry "$1" && losetup -d "$loop" && rm "/tmp/$1"
}

round=1
while [ $round -le "${ROUNDS:-2}" ]; do
    before=$(entries)
    must "writes go on" until_true 60 more_than $((before + 5))
    cp /tmp/ledger "/tmp/ledger-$round"
    must "group snapshot $round is taken" timed "snapshot_$round" host snapshot $round
    touch /tmp/pause
    touch "/mnt/whole/after-$round"; sync -f "/mnt/whole/after-$round"
    target_1=$(host_value SNAP_TARGET_1) lun_1=$(host_value SNAP_LUN_1)
    target_2=$(host_value SNAP_TARGET_2) lun_2=$(host_value SNAP_LUN_2)
    must "its first disk appears" attach "$target_1" "$lun_1"
    one=$DEV
    check "it is read-only" equal "$(cat "/sys/block/$DISK/ro")" 1
    must "its second disk appears" attach "$target_2" "$lun_2"
    must "an overlay over each" eval 'overlaid one "$one" && overlaid two "$DEV"'
    must "stripe over the overlays" stripe snap /dev/mapper/one /dev/mapper/two
    must "mount it, replaying the journal" mount -t ext4 /dev/mapper/snap /mnt/snap
    check "every file fsynced before the snapshot is in it" verify_files /mnt/snap "/tmp/ledger-$round"
    check "a file made after it is not" test ! -e "/mnt/snap/after-$round"
    result "files_verified_$round" "$(wc -l <"/tmp/ledger-$round")"
    must "umount it" umount /mnt/snap
    check "fsck.ext4 finds nothing" fsck.ext4 -f -n /dev/mapper/snap
    must "take it down" eval 'dmsetup remove --retry snap && remove_overlaid one && remove_overlaid two'
    rm /tmp/pause
    logout "$target_1" "$PORTAL" >/dev/null; logout "$target_2" "$PORTAL" >/dev/null
    round=$((round + 1))
done

touch /tmp/enough
wait
check "no write failed" test ! -e /tmp/write-errors
check "the origin has every file" verify_files /mnt/whole /tmp/ledger
must "umount" umount /mnt/whole
check "fsck.ext4 finds nothing in the origin" fsck.ext4 -f -n /dev/mapper/whole
must "take the stripes down" dmsetup remove --retry whole
must "logout" iscsiadm -m node --logoutall=all

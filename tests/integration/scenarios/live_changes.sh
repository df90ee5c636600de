#!/bin/sh
# A disk grows, its target is paused, and a LUN comes and goes, all under a writer: nothing of it may reach the file
# system as an error. Needs --host-cmd grow=, pause=, resume=, add= and remove=; $GROWN and $ADDED are sizes in bytes.
. /scenario/lib.sh
need_host grow pause resume add remove
prepare_target "$TARGET" "$PORTAL"
# Pings every second, answered within two: the pause is longer than that.
set_node "$TARGET" "$PORTAL" 'node.conn[0].timeo.noop_out_interval' 1
set_node "$TARGET" "$PORTAL" 'node.conn[0].timeo.noop_out_timeout' 2
must "login" login "$TARGET" "$PORTAL"
must "a disk appears" wait_disk "$TARGET" "$PORTAL" 0
session=$(sessions_of "$TARGET" "$PORTAL")
mkdir -p /mnt/a
must "mkfs.ext4" mkfs.ext4 -q -F "$DEV"
must "mount" mount -t ext4 "$DEV" /mnt/a

# The writer: one file after another, in the ledger once its fsync has come back; the last 32 are kept.
: >/tmp/ledger
: >/tmp/written
writer() {
    local i=0 file
    while [ ! -e /tmp/enough ]; do
        i=$((i + 1)) file=f$((i % 32))
        dd if=/dev/urandom of=/tmp/piece bs=64K count=4 status=none
        if dd if=/tmp/piece of="/mnt/a/$file" bs=64K conv=fsync status=none; then
            echo "$(sha256sum </tmp/piece | cut -d' ' -f1)  $file" >>/tmp/written
        else
            touch /tmp/write-errors
            return 1
        fi
    done
    tail -n 32 /tmp/written >/tmp/ledger
}
entries() { wc -l </tmp/written; }
more_than() { [ "$(entries)" -gt "$1" ]; }
goes_on() { until_true 60 more_than "$(($(entries) + 3))"; }
size_of() { blockdev --getsize64 "$1"; }
is_size() { [ "$(size_of "$1")" = "$2" ]; }
logged() { dmesg | grep -q "$1"; }

writer &
must "the writer is under way" goes_on

say "the volume grows"
must "the volume is resized" host grow
check "the kernel is told: CAPACITY DATA HAS CHANGED" until_true 20 logged 'Capacity data has changed'
echo 1 >"/sys/block/$DISK/device/rescan"
must "a rescan shows the new size" until_true 20 is_size "$DEV" "$GROWN"
must "the file system grows while it is mounted" resize2fs "$DEV"
check "and has the room" test "$(df -k /mnt/a | awk 'NR == 2 { print $2 }')" -gt "$((GROWN / 1024 * 8 / 10))"
check "the writer goes on" goes_on
check "the new end can be read" dd if="$DEV" of=/dev/null bs=1M count=1 skip="$((GROWN / 1048576 - 1))" iflag=direct

say "the target is paused"
must "pause" host pause
at_pause=$(entries)
sleep 4
check "no write ends meanwhile" test "$(($(entries) - at_pause))" -le 1
must "resume" host resume
check "the writer goes on" goes_on
say "the target is paused for longer than the kernel waits for a command"
echo 2 >"/sys/block/$DISK/device/timeout"
must "pause again" host pause
sleep 6
check "the kernel has aborted commands and tries again" contains /sys/block/"$DISK"/device/iotmo_cnt '0x[1-9a-f]'
must "resume again" host resume
check "the writer goes on" goes_on
echo 30 >"/sys/block/$DISK/device/timeout"
check "the session is the same one" equal "$(sessions_of "$TARGET" "$PORTAL")" "$session"

say "a LUN comes and goes"
must "a LUN is added" host add
check "the kernel is told: REPORTED LUNS DATA HAS CHANGED" until_true 20 logged 'LUN assignments on this target have changed'
iscsiadm -m session --rescan >/dev/null
must "a rescan shows the new disk" wait_disk "$TARGET" "$PORTAL" 1
check "of its size" is_size "$DEV" "$ADDED"
check "it can be written" dd if=/dev/urandom of="$DEV" bs=64K count=16 oflag=direct status=none
must "the LUN is removed under the session" host remove
check "it cannot be read any more" not dd if="$DEV" of=/dev/null bs=64K count=1 iflag=direct
sg_turs -v "$DEV" >/tmp/turs 2>&1
check "it says LOGICAL UNIT NOT SUPPORTED" contains /tmp/turs 'Logical unit not supported'
echo 1 >"/sys/block/$DISK/device/delete"
check "the first disk is served as before" goes_on

touch /tmp/enough
wait
check "no write failed" test ! -e /tmp/write-errors
must "the first disk again" wait_disk "$TARGET" "$PORTAL" 0
check "no dropped connection, no ping timeout" not sh -c "dmesg | grep -E 'detected conn error|ping timeout'"
check "no I/O error on the first disk" not sh -c "dmesg | grep -E 'error.*$DISK|EXT4-fs error'"
must "umount" umount /mnt/a
must "logout" logout "$TARGET" "$PORTAL"
must "login again" login "$TARGET" "$PORTAL"
must "the disk is back" wait_disk "$TARGET" "$PORTAL" 0
check "in its new size" is_size "$DEV" "$GROWN"
check "fsck.ext4 finds nothing" fsck.ext4 -f -n "$DEV"
must "mount again" mount -t ext4 -o ro "$DEV" /mnt/a
check "every acknowledged write is there" verify_files /mnt/a /tmp/ledger
result writes_acknowledged "$(entries)"
must "umount again" umount /mnt/a
must "logout at the end" logout "$TARGET" "$PORTAL"

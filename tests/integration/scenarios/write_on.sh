#!/bin/sh
# Files are written and synced, removed and renamed on an ext4 of $TARGET, from a sign to the host (mounted) on until that
# has had enough (enough).
. /scenario/lib.sh
need_host mounted enough
prepare_target "$TARGET" "$PORTAL"
must "login" login "$TARGET" "$PORTAL"
must "the disk appears" wait_disk "$TARGET" "$PORTAL"
must "mkfs.ext4" mkfs.ext4 -q -F -J size=4 "$DEV"
mkdir -p /mnt/a
must "mount" mount -t ext4 "$DEV" /mnt/a
sync
must "the host hears that it begins" host mounted
(i=0; while [ ! -e /tmp/enough ]; do
    i=$((i + 1)); d=/mnt/a/d$((i / 8 % 12))
    [ $((i % 8)) -ne 0 ] || rm -rf "$d"
    mkdir -p "$d"
    dd if=/dev/urandom of="$d/new" bs=16K count=$((i % 5 + 1)) conv=fsync status=none && mv "$d/new" "$d/f$i" ||
        echo "write $i failed" >>/tmp/write-errors
done; echo $i >/tmp/written) & writer=$!
must "until it is enough" host enough
touch /tmp/enough
wait $writer
check "no write failed" test ! -e /tmp/write-errors
result files_written "$(cat /tmp/written)"
must "umount" umount /mnt/a
check "fsck finds nothing" fsck.ext4 -f -n "$DEV"
must "logout" logout "$TARGET" "$PORTAL"

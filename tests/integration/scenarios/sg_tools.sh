#!/bin/sh
# What sg3-utils and the kernel read of a disk, discard, sanitize and an ejected medium ($TARGET2's), without a complaint.
. /scenario/lib.sh
need_host low
prepare_target "$TARGET" "$PORTAL"
prepare_target "$TARGET2" "$PORTAL"
must "login" login "$TARGET" "$PORTAL"
must "a disk appears" wait_disk "$TARGET" "$PORTAL" 0

# said COMMAND...: its output is in /tmp/said, to be looked at with "tells".
said() { "$@" >/tmp/said 2>&1; }
tells() { contains /tmp/said "$1"; }
zeroes() { [ "$(dd if="$DEV" bs=1M iflag=direct status=none | tr -d '\000' | wc -c)" = 0 ]; }

check "sg_vpd: every listed page is decoded" said sg_vpd --all "$DEV"
check "block limits" tells 'Maximum atomic transfer length: 512 blocks'
check "characteristics" tells 'WABEREQ=1'
check "provisioning" tells 'Provisioning type: 2 \(thin provisioned\)'
check "extended INQUIRY data" tells 'ORDSUP=1'
check "sg_modes" said sg_modes --all "$DEV"
check "caching page" tells 'Caching'
check "sg_opcodes" said sg_opcodes "$DEV"
check "sanitize is listed" tells 'Sanitize, block erase'
check "write atomic is listed" tells '^ 9c '
check "each command by itself" said sg_opcodes --opcode=0x48,2 "$DEV"
dd if="$DEV" of=/dev/null bs=64K count=16 iflag=direct status=none
check "sg_logs" said sg_logs --page=0x19 "$DEV"
check "it counts" tells 'number of read commands = [1-9]'
check "sg_logs: what is left of the pool" said sg_logs --page=0xc "$DEV"
check "in threshold sets" tells 'Available LBA mapping'
check "sg_modes: the threshold" said sg_modes --page=0x1c,2 "$DEV"
check "sg_readcap" said sg_readcap --long "$DEV"
check "it is thin" tells 'lbpme=1, lbprz=1'
check "the kernel discards whole megabytes" test "$(cat "/sys/block/$DISK/queue/discard_max_bytes")" -ge 1048576
check "write back cache, FUA" test "$(cat "/sys/block/$DISK/queue/write_cache") $(cat "/sys/block/$DISK/queue/fua")" = "write back 1"

yes secret | dd of="$DEV" bs=1M count=16 iflag=fullblock oflag=direct status=none
check "sanitize, block erase" timed block_erase sg_sanitize --block --quick --wait "$DEV"
check "nothing is left" zeroes
check "all is deallocated" said sg_get_lba_status "$DEV"
check "in one extent" tells 'blocks: *131072 +deallocated'
yes secret | dd of="$DEV" bs=1M count=16 iflag=fullblock oflag=direct status=none
must "the pool becomes low" host low
warned() {
    dd if="$DEV" of=/dev/null bs=4096 count=1 iflag=direct status=none
    dmesg | grep -q 'reached a thin provisioning soft'
}
check "the kernel is warned" until_true 20 warned
check "sanitize, overwrite, as it polls" timed overwrite sg_sanitize --overwrite --zero --quick --wait "$DEV"
check "nothing is left again" zeroes
yes secret | dd of="$DEV" bs=1M count=16 iflag=fullblock oflag=direct status=none
check "blkdiscard" blkdiscard -f "$DEV"
check "reads zero" zeroes

must "login to the removable one" login "$TARGET2" "$PORTAL"
must "its disk appears" wait_disk "$TARGET2" "$PORTAL" 0
check "it is removable" test "$(cat "/sys/block/$DISK/removable")" = 1
# Through its sg node: while anybody, udev say, has /dev/sdX open, the kernel itself prevents removal.
SG=/dev/$(ls "/sys/block/$DISK/device/scsi_generic")
check "eject" until_true 10 sg_start --eject "$SG"
check "no medium" not dd if="$DEV" of=/dev/null bs=4096 count=1 status=none
check "load" until_true 10 sg_start --load "$SG"
check "it can be read again" until_true 10 dd if="$DEV" of=/dev/null bs=4096 count=1 status=none
check "locked against removal" sg_prevent --prevent=1 "$SG"
check "eject is refused" not sg_start --eject "$SG"
check "unlocked" sg_prevent --allow "$SG"

dmesg | grep -E 'sd[a-z]|scsi' >/tmp/kernel
check "no complaint of the kernel" not grep -E -i 'invalid|illegal|assuming|failed|mismatch' /tmp/kernel
must "logout" logout "$TARGET" "$PORTAL"
must "logout" logout "$TARGET2" "$PORTAL"

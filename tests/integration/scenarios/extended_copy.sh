#!/bin/sh
# Offloaded copies asked for by sg3-utils: EXTENDED COPY between two disks by sg_xcopy, then a token of $TARGET's disk
# written to $TARGET2's by sg_raw. What is copied has to read back equal, and nothing else may change.
. /scenario/lib.sh
log_in() {                                  # log_in TARGET: sets DISK
    prepare_target "$1" "$PORTAL"
    must "login to $1" login "$1" "$PORTAL"
    must "its disk appears" wait_disk "$1" "$PORTAL" 0
}
log_in "$TARGET"; A=/dev/$DISK
log_in "$TARGET2"; B=/dev/$DISK
udevadm settle
sum() { dd if="$1" bs=1M skip="$2" count="$3" iflag=direct status=none | sha256sum; }

say "1. what the disks say of it"
sg_vpd --page=tpc "$A" >/tmp/tpc || true
cat /tmp/tpc
check "VPD page 8Fh is understood" contains /tmp/tpc "[Bb]lock -> block"
check "and names ROD tokens" contains /tmp/tpc "point in time copy - default"
sg_copy_results --params "$A" >/tmp/params || true
cat /tmp/params
check "the operating parameters are understood" contains /tmp/params "[Bb]lock [Dd]evice"

say "2. EXTENDED COPY"
must "random data on the first" dd if=/dev/urandom of="$A" bs=1M count=8 oflag=direct status=none
before=$(sum "$B" 12 4)
check "sg_xcopy" sg_xcopy if="$A" of="$B" bs=512 skip=2048 seek=10240 count=14336 bpt=4096
check "the second has it" equal "$(sum "$B" 5 7)" "$(sum "$A" 1 7)"
check "and nothing more" equal "$(sum "$B" 12 4)" "$before"
check "within one disk" sg_xcopy if="$A" of="$A" bs=512 skip=0 seek=65536 count=16384 bpt=16384
check "it has its copy" equal "$(sum "$A" 32 8)" "$(sum "$A" 0 8)"

say "3. a token"
hex() {                                     # hex DIGITS...: these bytes
    local byte
    for byte in $(printf '%s' "$*" | tr -d ' ' | sed 's/../& /g'); do
        printf '%b' "\\0$(printf '%o' "0x$byte")"
    done
}
# LBA 2048, 14336 blocks
hex 001e 0000 00000000 00000000 0000 0010 0000000000000800 00003800 00000000 >/tmp/populate
check "POPULATE TOKEN" sg_raw -s 32 -i /tmp/populate "$A" 83 10 00 00 00 00 00 00 00 07 00 00 00 20 00 00
check "RECEIVE ROD TOKEN INFORMATION" sg_raw -r 550 -o /tmp/information "$A" 84 07 00 00 00 07 00 00 00 00 00 00 02 26 00 00
tail -c 512 /tmp/information >/tmp/token
wanted=$(sum "$A" 1 7)
must "other data on the first" dd if=/dev/urandom of="$A" bs=1M count=8 oflag=direct status=none
{ hex 0226 02 0000000000 0000000000000000; cat /tmp/token; hex 000000000000 0010 0000000000000800 00003800 00000000; } >/tmp/write
check "WRITE USING TOKEN" sg_raw -s 552 -i /tmp/write "$B" 83 11 00 00 00 00 00 00 00 08 00 00 02 28 00 00
check "the second has what the first had then" equal "$(sum "$B" 1 7)" "$wanted"
check "the token is deleted" not sg_raw -s 552 -i /tmp/write "$B" 83 11 00 00 00 00 00 00 00 09 00 00 02 28 00 00
check "no errors in the kernel log" not sh -c 'dmesg | grep -E "I/O error|blk_update_request"'

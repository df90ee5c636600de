#!/bin/sh
# Two daemons: $TARGET at $PORTAL is the source of an asynchronous mirror with an RPO of $RPO seconds, $TARGET2 at
# $PORTAL2 its replica. The source is killed under a writer (kill), the replica becomes the disk (failover), the guest
# logs in there. What was synced before the instant that the replica named (plan) is there, and no more is missing than
# the RPO allows, if the mirror was within it (state).
. /scenario/lib.sh
need_host state kill plan failover
prepare_target "$TARGET" "$PORTAL"
set_node "$TARGET" "$PORTAL" node.session.timeo.replacement_timeout 3
must "login to the source" login "$TARGET" "$PORTAL"
must "its disk appears" wait_disk "$TARGET" "$PORTAL"
must "mkfs.ext4" mkfs.ext4 -q -F -J size=8 "$DEV"
mkdir -p /mnt/a /mnt/b
must "mount" mount -t ext4 "$DEV" /mnt/a

say "1. the source is killed under a writer"
: >/tmp/ledger                              # lines "SECONDS SHA256  FILE", each after the fsync
(i=0; while [ ! -e /tmp/enough ]; do
    i=$((i + 1))
    dd if=/dev/urandom of=/mnt/a/f$i bs=64K count=1 conv=fsync status=none || break
    sum=$(cd /mnt/a && sha256sum f$i) || break
    echo "$(now) $sum" >>/tmp/ledger
done) 2>/tmp/writer & writer=$!
later() { [ "$(since "$begun" | cut -d. -f1)" -ge "$1" ]; }
begun=$(now)
until_true $((RPO * 4)) later $((RPO + RPO / 2))
must "the mirror is asked how it is" host state
state=$(host_value STATE) lag=$(host_value LAG)
killed=$(now)
must "the source is killed" host kill
cp /tmp/ledger /tmp/synced
touch /tmp/enough
must "the replica says until when it is complete" host plan
asked=$killed age=$(host_value AGE_AT_KILL)
must "the replica becomes the disk" timed failover host failover

say "2. the guest goes there"
umount -l /mnt/a
prepare_target "$TARGET2" "$PORTAL2"
must "login to the replica" login "$TARGET2" "$PORTAL2"
must "its disk appears" wait_disk "$TARGET2" "$PORTAL2"
must "mount, replaying the journal" mount -t ext4 "$DEV" /mnt/b
awk -v until="$asked" -v age="$age" '$1 <= until - age { print $2 "  " $3 }' /tmp/synced >/tmp/due
awk '{ print $2 "  " $3 }' /tmp/synced >/tmp/all
check "files were due" test -s /tmp/due
check "every file synced until that instant is there" verify_files /mnt/b /tmp/due
first=$( (cd /mnt/b && sha256sum -c /tmp/all 2>/dev/null) | sed -n 's/: FAILED.*//p' | head -n 1)
lost=0
[ -z "$first" ] || lost=$(awk -v k="$killed" -v f="$first" '$3 == f { printf "%.2f", k - $1 }' /tmp/synced)
result state_at_the_kill "$state, lag $lag s"
result files_synced "$(wc -l </tmp/all)"
result files_due "$(wc -l </tmp/due)"
result seconds_told "$age"
result seconds_lost "$lost"
within() { awk -v a="$1" -v b="$2" 'BEGIN { exit !(a <= b) }'; }
[ "$state" != Synchronized ] || check "no more is missing than the RPO allows" within "$lost" "$RPO"
must "umount" umount /mnt/b
check "fsck finds nothing" fsck.ext4 -f -n "$DEV"
wait $writer

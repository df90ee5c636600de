#!/bin/sh
# Persistent reservations through a kill of the target: two I_T nexuses to one disk, reserved with APTPL by the first.
# Then registrations for another port. Needs --host-cmd restart=, which kills the target and comes back when it listens
# again.
. /scenario/lib.sh
need_host restart
prepare_target "$TARGET" "$PORTAL"
must "login" login "$TARGET" "$PORTAL"
first=$(sessions_of "$TARGET" "$PORTAL")
must "a second session to the portal" iscsiadm -m session -r "${first#session}" -o new
paths() { disks_of "$TARGET" | awk '$1 == 0 { print $2 }'; }
both() { [ "$(paths | wc -l)" = 2 ]; }
must "the disk appears in both sessions" until_true 20 both
udevadm settle
set -- $(paths)
A=/dev/$1 B=/dev/$2
pr() { sg_persist --no-inquiry "$@"; }
keys() { pr --in --read-keys "$A" | grep -c -E '^ +0x'; }
holder() { pr --in --read-reservation "$A" | sed -n 's/^ *Key=//p'; }
write_by() { dd if=/dev/zero of="$1" bs=4096 count=1 seek=64 oflag=direct conv=fsync status=none; }
read_by() { dd if="$1" of=/dev/null bs=4096 count=1 skip=64 iflag=direct status=none; }
full() { pr --in --read-full-status "$A" | grep -v 'PR generation'; }
ready() { sg_turs "$1"; }

pr --in --report-capabilities "$A" >/tmp/capabilities
cat /tmp/capabilities
check "APTPL is supported (PTPL_C)" contains /tmp/capabilities 'PTPL_C\): 1'
check "register key 0xa1 by the first nexus, with APTPL" pr --out --register --param-aptpl --param-sark=0xa1 "$A"
check "register key 0xb2 by the second" pr --out --register --param-aptpl --param-sark=0xb2 "$B"
check "reserve, write exclusive" pr --out --reserve --param-rk=0xa1 --prout-type=1 "$A"
check "the second cannot write" not write_by "$B"
full >/tmp/before
cat /tmp/before

must "the target is killed and started again" host restart
check "the first session comes back" until_true 60 ready "$A"
check "the second session comes back" until_true 60 ready "$B"
check "the second still cannot write" not write_by "$B"
check "but it can read" read_by "$B"
check "two keys are registered" equal "$(keys)" 2
check "the reservation is held by 0xa1" equal "$(holder)" 0xa1
full >/tmp/after
check "every registration is what it was" cmp /tmp/before /tmp/after
check "the holder writes" write_by "$A"

check "the second preempts the holder" \
    pr --out --preempt --param-rk=0xb2 --param-sark=0xa1 --prout-type=1 "$B"
must "another restart" host restart
check "the sessions come back" until_true 60 ready "$A"
check "both" until_true 60 ready "$B"
check "one key is left" equal "$(keys)" 1
check "the preempted nexus cannot write" not write_by "$A"
check "the new holder writes" write_by "$B"
check "clear" pr --out --clear --param-rk=0xb2 "$B"
must "a last restart" host restart
check "the sessions come back" until_true 60 ready "$A"
check "no key is left" equal "$(keys)" 0
check "the first writes" write_by "$A"

say "ports named by TransportID: SPEC_I_PT, REGISTER AND MOVE"
pr --out --register --param-sark=0xb2 "$B"
port_b=$(full | sed -n 's/.*unique port id: //p' | head -n 1)
result port_b "$port_b"
pr --out --register --param-rk=0xb2 --param-sark=0 "$B"
check "the port is named with its ISID" test "${port_b#*,i,0x}" != "$port_b"
check "the first registers itself and the second" \
    pr --out --register --param-sark=0xc3 --transport-id="$port_b" "$A"
check "two keys are registered" equal "$(keys)" 2
check "the second may use its registration" pr --out --reserve --param-rk=0xc3 --prout-type=1 "$B"
check "and release" pr --out --release --param-rk=0xc3 --prout-type=1 "$B"
check "the first reserves" pr --out --reserve --param-rk=0xc3 --prout-type=1 "$A"
check "and hands the reservation over" \
    pr --out --register-move --param-rk=0xc3 --param-sark=0xd4 --unreg \
    --relative-target-port=1 --transport-id="$port_b" "$A"
full
check "one key is left" equal "$(keys)" 1
check "which holds it" equal "$(holder)" 0xd4
check "the second writes" write_by "$B"
check "the first cannot" not write_by "$A"
check "clear" pr --out --clear --param-rk=0xd4 "$B"
must "logout" iscsiadm -m node --logoutall=all

#!/bin/sh
# CHAP by each hash, mutual, on a session with digests; discovery with credentials of its own.
# The target and discovery must require --chap-user/--chap-secret and prove --mutual-user/--mutual-secret.
. /scenario/lib.sh

works() {                                   # works HASH: login by it alone, read the disk, logout
    node "$TARGET" "$PORTAL" -o delete >/dev/null 2>&1
    new_node "$TARGET" "$PORTAL" >/dev/null &&
        set_chap "$TARGET" "$PORTAL" "$CHAP_USER" "$CHAP_SECRET" "$MUTUAL_USER" "$MUTUAL_SECRET" &&
        set_node "$TARGET" "$PORTAL" node.session.auth.chap_algs "$1" &&
        set_node "$TARGET" "$PORTAL" "node.conn[0].iscsi.HeaderDigest" CRC32C &&
        set_node "$TARGET" "$PORTAL" "node.conn[0].iscsi.DataDigest" CRC32C &&
        login "$TARGET" "$PORTAL" || return
    wait_disk "$TARGET" "$PORTAL" "$LUN" &&
        dd if="$DEV" of=/dev/null bs=64K count=16 iflag=direct status=none
    local rc=$?
    logout "$TARGET" "$PORTAL" && return $rc
}

say "1. hashes"
check "MD5" works MD5
check "SHA-256" works SHA256
check "SHA3-256" works SHA3-256
check "the strongest of all" works SHA3-256,SHA256,SHA1,MD5
check "SHA-1 alone is refused" not works SHA1

say "2. discovery"
db() { iscsiadm -m discoverydb -t sendtargets -p "$PORTAL" "$@"; }
asked() {                                   # asked SECRET MUTUAL_SECRET: the answer to a discovery with them
    db -o delete >/dev/null 2>&1
    db -o new >/dev/null || return
    while read -r name value; do
        db -o update -n "discovery.sendtargets.auth.$name" -v "$value" || return
    done <<SETTINGS
authmethod CHAP
username $CHAP_USER
password $1
username_in $MUTUAL_USER
password_in $2
SETTINGS
    db --discover >/tmp/found && contains /tmp/found " $TARGET\$"
}
check "discovery with the right secrets" asked "$CHAP_SECRET" "$MUTUAL_SECRET"
check "discovery with a wrong secret is refused" not asked "${CHAP_SECRET}x" "$MUTUAL_SECRET"
check "a target that cannot prove itself is not asked" not asked "$CHAP_SECRET" "${MUTUAL_SECRET}x"
check "discovery without credentials is refused" not discover "$PORTAL"
check "no session is left" no_disks "$TARGET"
